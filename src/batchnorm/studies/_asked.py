"""What a caller asks of a run, refused in one line with the way out where it cannot be done."""

import operator
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from batchnorm.data import NAMES
from batchnorm.studies._network import EMBEDDED
from batchnorm.studies._trial import Setup

# As a page tells them: what batch norm does, why, where it goes, at test time, and by itself.
STUDIES = (
    "speed",
    "learning_rate",
    "initialization",
    "depth",
    "optimizers",
    "shift",
    "landscape",
    "noise",
    "dropout",
    "placement",
    "small_batch",
    "test_time",
    "new_domain",
    "scale_and_shift",
    "identity",
    "bias",
)
SCALES = ("quick", "full")
LAST_SEED = 10**9  # studies make more seeds of one: they multiply it, and torch has 64 bits
CROWD = 4  # processes a core: more would only wait for each other, and fill the memory


def names_of(names: object) -> list[str]:
    """The studies that are meant, in their own order; all of them for None or no names.

    Raises:
        ValueError: a name that is no study's.
        TypeError: neither a name nor several.

    >>> names_of(["learning_rate", "speed"])
    ['speed', 'learning_rate']
    """
    if names is not None and not isinstance(names, Iterable):
        raise TypeError(f"names is {names!r}: expected one or several of {', '.join(STUDIES)}")
    wanted: list[Any] = [names] if isinstance(names, str) else list(names or STUDIES)
    for name in wanted:
        one_of("study", name, STUDIES)
    return [name for name in STUDIES if name in wanted]


def one_of(what: str, value: object, possible: tuple[str, ...]) -> None:
    """Refuse a value that is not among the possible ones.

    Raises:
        ValueError: and which one may have been meant.

    >>> one_of("scale", "fulll", SCALES)
    Traceback (most recent call last):
    ValueError: no scale 'fulll': did you mean 'full'? possible: quick, full
    """
    if isinstance(value, str) and value in possible:
        return
    close = get_close_matches(str(value), possible, n=1)
    hint = f": did you mean {close[0]!r}?" if close else ";"
    raise ValueError(f"no {what} {value!r}{hint} possible: {', '.join(possible)}")


def named(what: str, value: object, possible: str) -> None:
    """Refuse what is not a name: trials run in processes that know nothing of this one's objects.

    Args:
        what: "model" or "data".
        value: what was given for it.
        possible: which names there are.

    Raises:
        TypeError: not a string; it says what name to give for an object that has one.

    >>> named("model", folder_of, "module:function")
    Traceback (most recent call last):
    TypeError: model is folder_of itself: give its name, model='batchnorm...:folder_of', since ...
    """
    if isinstance(value, str):
        return
    why = "since trials run in other processes, which find it by that name"
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if callable(value) and name and module not in (None, "__main__") and name.isidentifier():
        raise TypeError(f"{what} is {name} itself: give its name, {what}='{module}:{name}', {why}")
    kind = "a function" if callable(value) and name else f"of type {type(value).__name__}"
    file = "put a function that makes it into a file, such as mine.py"
    if callable(value) and name:
        file = "put it at the top of a file, such as mine.py"
    raise TypeError(
        f"{what} is {kind}; expected a name, {possible}: {file}, and give its name, "
        f"{what}='mine:function', {why}"
    )


def setup_of(model: object, data: object, scale: object, seed: object) -> Setup:
    """The set-up that is meant.

    Raises:
        ValueError: no such scale, or no such seed.
        TypeError: an object where a name is expected.
    """
    one_of("scale", scale, SCALES)
    if model is not None:
        named("model", model, f"module:function, or {EMBEDDED[1]}")
    if data is not None:
        named("data", data, f"one of {', '.join(NAMES)}, a folder, or module:function")
    # The network that is taken anyway, so the same trials.
    mine = None if model == EMBEDDED[0] else model
    return Setup(str(scale), cast("str | None", mine), str(data or Setup.data), _first_seed(seed))


def _first_seed(seed: object) -> int:
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = -1
    if not 0 <= number <= LAST_SEED:
        raise ValueError(
            f"seed is {seed!r}: expected a whole number from 0 to {LAST_SEED}, the first of the "
            f"seeds; leave it out for {Setup.seed}, or take 100 for seeds of its own"
        )
    return number


def processes(jobs: object) -> int:
    """How many processes; as many as there are cores for None.

    Raises:
        ValueError: less than one, not a whole number, or far more than there are cores.
    """
    from loky import cpu_count

    if jobs is None:
        return cpu_count()
    most = CROWD * (os.cpu_count() or 1)
    way_out = f"leave it out for one on each core ({cpu_count()} here)"
    try:
        number = 0 if isinstance(jobs, bool) else operator.index(jobs)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(
            f"jobs is {jobs!r}: expected a whole number of processes, 1 or more; {way_out}"
        )
    if number > most:
        raise ValueError(
            f"jobs is {jobs}: more than {most} processes would wait for each other on the "
            f"{os.cpu_count()} cores here, and fill the memory; {way_out}"
        )
    return number


def folder_of(out: object) -> Path:
    """The run's folder as a path.

    Raises:
        TypeError: not a path.
        ValueError: an empty one.
    """
    if not isinstance(out, str | os.PathLike):
        raise TypeError(f"out is {out!r}: expected the path of a folder, such as 'runs/study'")
    if not os.fspath(out):
        raise ValueError(
            "the output folder has no name: give one, such as runs/study, or . for here"
        )
    return Path(os.fsdecode(out))


def check_calls(executor: object, on_progress: object, fresh: object) -> None:
    """Refuse what cannot take trials, cannot be called, or is neither on nor off.

    Raises:
        TypeError: naming it.
        ValueError: a `fresh` of any other kind, which would count as on and forget what there is.
    """
    if not isinstance(fresh, bool):
        raise ValueError(f"fresh is {fresh!r}: expected True, to begin anew, or False")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor is {executor!r}: expected a concurrent.futures executor, or None for "
            "processes of our own"
        )
    if on_progress is not None and not callable(on_progress):
        raise TypeError(f"on_progress is {on_progress!r}: expected a function that takes Progress")
