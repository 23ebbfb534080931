"""What decides a trial's rows besides its own fields: code, data and versions."""

import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from modulefinder import ModuleFinder
from pathlib import Path
from sysconfig import get_path

import numpy
import torch

from batchnorm.data import Data, load
from batchnorm.named import _current_folder_importable
from batchnorm.studies._trial import Trial


@dataclass
class Context:
    """Reads code and data once, for the length of one run."""

    data: dict[str, Data] = field(default_factory=dict[str, Data])
    models: dict[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def base(self) -> str:
        """What all trials share: our own sources and the versions of what they stand on."""
        package = hash_files(sorted(Path(__file__).parent.parent.rglob("*.py")))
        return (
            f"batchnorm {version('batchnorm')} ({package}), torch {torch.__version__}, "
            f"numpy {numpy.__version__}, numba {_kernels()}"
        )

    def examples(self, name: str) -> Data:
        """The data set of that name, as :func:`batchnorm.data.load` gives it; loaded once.

        Raises:
            ValueError: as :func:`batchnorm.data.load`.
        """
        if name not in self.data:
            self.data[name] = load(name)
        return self.data[name]

    def of(self, trial: Trial) -> str:
        """What else decides this trial's rows; other trials' data and models are not in it."""
        if ":" in trial.network and trial.network not in self.models:
            self.models[trial.network] = hash_files(sources(trial.network.partition(":")[0]))
        return (
            f"{self.base}, data {self.examples(trial.data).fingerprint}, "
            f"model {self.models.get(trial.network, '')}"
        )


def _kernels() -> str:
    """The version of Numba, whose kernels round otherwise than plain torch; "none" without it."""
    try:
        return version("numba")
    except PackageNotFoundError:
        return "none"


def hash_files(paths: Iterable[Path]) -> str:
    """Short hexadecimal hash of what is in the files, by name and in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def sources(module: str) -> list[Path]:
    """The files of a user's module: all of its package, or it and what it imports from beside it.

    >>> [path.name for path in sources("colorsys")]
    ['colorsys.py']
    """
    with _current_folder_importable():
        top = importlib.util.find_spec(module.partition(".")[0])
    if top is not None and top.origin is None:  # a folder without __init__.py
        folders = top.submodule_search_locations or []
        return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    if top is None or top.origin is None or not Path(top.origin).is_file():
        return []
    origin = Path(top.origin)
    if origin.name == "__init__.py":
        return sorted(origin.parent.rglob("*.py"))
    installed = {Path(get_path(kind)) for kind in ("stdlib", "purelib", "platlib")}
    return [origin] if origin.parent in installed else [origin, *_beside(origin)]


def _beside(origin: Path) -> list[Path]:
    # Reads what is imported without running it, and finds only what lies in the same folder.
    finder = ModuleFinder([str(origin.parent)])
    finder.run_script(str(origin))
    found = (Path(m.__file__) for m in finder.modules.values() if m.__file__)  # type: ignore[attr-defined]
    return sorted(path for path in found if path != origin)
