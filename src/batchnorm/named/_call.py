"""Calls a function of yours by its name, in whatever process it is wanted."""

import importlib
import random
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from batchnorm.named._sources import current_folder_importable, sources


@contextmanager
def _drawn_apart() -> Generator[None]:
    """Random numbers drawn inside are drawn again after it.

    A training script makes its model when it is imported; the first call of its function would
    otherwise start from other numbers than the next.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    ours, theirs = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]) if torch else nullcontext():
            yield
    finally:
        random.setstate(ours)
        if numpy:
            numpy.random.set_state(theirs)


def call(name: str, what: str) -> Any:
    """What the user's ``module:function`` returns; the current folder is importable meanwhile.

    A module is imported anew when its file, or one that it imports, has changed since.

    Raises:
        ValueError: not of that form, not importable, no such function, or it raised.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function.isidentifier():
        raise ValueError(f"{what} {name!r} is not of the form module:function")
    files = sources(name)
    with current_folder_importable():
        try:
            before = _imported.get(module_name, files)
            for stale in {*before, *files} if before != files else ():
                sys.modules.pop(stale, None)
            with _drawn_apart():
                module = importlib.import_module(module_name)
            _imported[module_name] = files
        except (Exception, SystemExit) as error:
            plain = module_name.removesuffix(".py")
            hint = "" if plain == module_name else f"; a module has no .py: {plain}:{function}"
            raise ValueError(
                f"{what} {name!r}: importing {module_name!r} from {Path.cwd()} or sys.path raised "
                f"{type(error).__name__}: {error}{hint}"
            ) from error
        if not callable(getattr(module, function, None)):
            defined = [n for n, v in vars(module).items() if callable(v) and n[0] != "_"]
            raise ValueError(
                f"{what} {name!r}: {module_name!r} has no function {function!r}; it has "
                f"{', '.join(defined) or 'none'}"
            )
        try:
            return getattr(module, function)()
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{what} {name!r}: {function}() raised {type(error).__name__}: {error}"
            ) from error


_imported: dict[str, dict[str, str]] = {}
