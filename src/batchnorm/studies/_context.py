"""What decides a trial's rows besides its own fields: code, data and versions."""

import hashlib
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy
import torch

from batchnorm.data import Data
from batchnorm.named import sources
from batchnorm.studies._network import EMBEDDED
from batchnorm.studies._repeats import check_initial_state, initial_state, loaded
from batchnorm.studies._trial import Trial, canonical
from batchnorm.train import Row

# Parts that draw and tell what was found: no row comes from them, so they may change under rows.
NO_ROWS = ("charts", "report", "screen", "cli.py", "__main__.py")
AGAIN = "give the same command again: trials that are finished stay, others run anew"


@dataclass(frozen=True)
class Stamp:
    """What a trial's rows stand for, as the process that plans them sees it.

    Args:
        base: our own sources that make rows, and the versions of what they stand on.
        data: the data set's fingerprint.
        model: the files of the user's network, by module, with the hash of each; none for ours.
        initial: hash of that network's weights as one seed leaves them.
    """

    base: str
    data: str
    model: dict[str, str] = field(default_factory=dict[str, str])
    initial: str = ""

    def __str__(self) -> str:
        return f"{self.base}, data {self.data}, model {canonical(self.model)} {self.initial}"


@dataclass(frozen=True)
class Stamped:
    """A trial that is run only where code and data are those that its key stands for."""

    trial: Trial
    stamp: Stamp

    def run(self) -> list[Row]:
        """The trial's rows.

        Raises:
            ValueError: this process has other code, data or versions; or as :meth:`Trial.run`.
        """
        self.check_code()
        try:
            if self.stamp.model:
                check_initial_state(self.trial.network, self.stamp.initial)
            return self.trial.run(self.stamp.data)
        finally:
            # Again, since files were imported meanwhile; one half written may raise anything.
            self.check_code()

    def check_code(self) -> None:
        here = base()
        if here != self.stamp.base:
            raise ValueError(
                f"batchnorm or what it stands on has changed since this run was planned, or is "
                f"another where trials run: planned with {self.stamp.base}, here {here}; start "
                f"Python anew and {AGAIN}"
            )
        now, planned = sources(self.trial.network), self.stamp.model
        changed = [name for name in {**planned, **now} if now.get(name) != planned.get(name)]
        if changed:
            raise ValueError(
                f"model {self.trial.network!r}: {', '.join(changed)} changed while the run was "
                f"going on; when you have finished editing, {AGAIN}"
            )


@dataclass
class Context:
    """Reads code and data once, for the length of one run."""

    data: dict[str, Data] = field(default_factory=dict[str, Data])
    models: dict[str, tuple[dict[str, str], str]] = field(
        default_factory=dict[str, tuple[dict[str, str], str]]
    )

    @cached_property
    def base(self) -> str:
        """As :func:`base`."""
        return base()

    def examples(self, name: str) -> Data:
        """The data set of that name, as :func:`batchnorm.data.load` gives it; loaded once.

        Raises:
            ValueError: as :func:`batchnorm.data.load`; or it is another at each call.
        """
        if name not in self.data:
            self.data[name] = loaded(name)
        return self.data[name]

    def of(self, trial: Trial) -> Stamp:
        """What else decides this trial's rows; other trials' data and models are not in it.

        Raises:
            ValueError: the user's network or data cannot be made, or is another at each call.
        """
        fingerprint = self.examples(trial.data).fingerprint
        return Stamp(self.base, fingerprint, *self.model(trial.network))

    def model(self, name: str) -> tuple[dict[str, str], str]:
        """The files of the user's network and the hash of its initial weights; nothing for ours.

        Raises:
            ValueError: it cannot be made, or is another at each call.
        """
        if name in EMBEDDED:
            return {}, ""
        if name not in self.models:
            self.models[name] = sources(name), initial_state(name)
        return self.models[name]


def base() -> str:
    """What all trials share: the sources that make rows, and the versions of what they stand on."""
    return (
        f"batchnorm {version('batchnorm')} ({_package(Path(__file__).parent.parent)}), "
        f"torch {torch.__version__}, numpy {numpy.__version__}, numba {_kernels()}"
    )


@cache
def _package(folder: Path) -> str:
    """Hash of what makes rows, as this process found it: it goes on with what it has imported."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name, content = path.relative_to(folder), path.read_bytes()
        if name.parts[0] not in NO_ROWS:
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _kernels() -> str:
    """The version of Numba, whose kernels round otherwise than plain torch; "none" without it."""
    try:
        return version("numba")
    except PackageNotFoundError:
        return "none"
