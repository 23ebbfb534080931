"""Your own code by its name, "module:function": how trials in other processes find it."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def call(name: str, what: str) -> Any:
    """What the user's ``module:function`` returns; the current folder is importable meanwhile.

    A module whose file has changed since it was imported is imported anew.

    Raises:
        ValueError: not of that form, not importable, no such function, or it raised.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function.isidentifier():
        raise ValueError(f"{what} {name!r} is not of the form module:function")
    stamp = source(name)
    with _current_folder_importable():
        try:
            module = sys.modules.get(module_name)
            if module is not None and _imported.get(module_name, stamp) != stamp:
                importlib.reload(module)
            module = importlib.import_module(module_name)
            _imported[module_name] = stamp
        except Exception as error:
            raise ValueError(
                f"{what} {name!r}: importing {module_name!r} from {Path.cwd()} or sys.path raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not callable(getattr(module, function, None)):
            defined = [n for n, v in vars(module).items() if callable(v) and n[0] != "_"]
            raise ValueError(
                f"{what} {name!r}: {module_name!r} has no function {function!r}; it has "
                f"{', '.join(defined) or 'none'}"
            )
        try:
            return getattr(module, function)()
        except Exception as error:
            raise ValueError(
                f"{what} {name!r}: {function}() raised {type(error).__name__}: {error}"
            ) from error


def source(name: str) -> str:
    """Hash of the file that ``module:function`` lives in; empty for any other name or no file."""
    if ":" not in name:
        return ""
    with _current_folder_importable():
        try:
            spec = importlib.util.find_spec(name.partition(":")[0])
        except (ImportError, ValueError):
            return ""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


_imported: dict[str, str] = {}


@contextmanager
def _current_folder_importable() -> Generator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
