"""What your own code is made of: the files behind "module:function", by what is in them."""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sysconfig import get_path

OURS = ("batchnorm", "torch", "numpy")  # known by their versions in every trial's key
DYNAMIC = (b"import_module", b"__import__", b"iter_modules", b"walk_packages")


def sources(name: str) -> dict[str, str]:
    """What ``module:function`` stands on: a hash for each file, a version for each library.

    Imports are read and followed, not run. Of what is installed, only a module that is named itself
    is taken with its files. Empty for a name that is not of that form or not to be found.

    >>> list(sources("colorsys:rgb_to_hsv"))
    ['colorsys']
    """
    module, colon, _ = name.partition(":")
    if not colon or not module:
        return {}
    with current_folder_importable():
        roots = [path for path in map(Path, sys.path) if not _installed(path)]
        waiting = list(_found(module, roots)) or _of_library(module)
    known: dict[str, str] = {}
    while waiting:
        module, path = waiting.pop()
        if module in known:
            continue
        content = path.read_bytes()
        known[module] = hashlib.sha256(content).hexdigest()[:16]
        if _installed(path):
            continue
        for imported in _absolute(module, path, content):
            if (top := imported.partition(".")[0]) not in OURS:
                found = list(_found(imported, roots))
                known |= {} if found else _version(top)
                waiting += found
        if any(word in content for word in DYNAMIC):
            waiting += _below(module, path)
    return dict(sorted(known.items()))


@contextmanager
def current_folder_importable() -> Generator[None]:
    """The current folder is the first that modules are looked for in."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _installed(path: Path) -> bool:
    library = "site-packages" in path.parts or "dist-packages" in path.parts
    return library or path.is_relative_to(get_path("stdlib"))


def _found(module: str, roots: Iterable[Path]) -> Generator[tuple[str, Path]]:
    """The files of a dotted name and of the packages that it lies in, each in the first root."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        for root in roots:
            place = root.joinpath(*parts[:end])
            for path in (place / "__init__.py", place.with_name(place.name + ".py")):
                if path.is_file():
                    yield ".".join(parts[:end]), path
                    break
            else:
                continue
            break


def _of_library(module: str) -> list[tuple[str, Path]]:
    """An installed module with all of its package."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return []
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return []
    path = Path(spec.origin)
    return [(spec.name, path), *(_below(spec.name, path) if path.name == "__init__.py" else [])]


def _below(module: str, path: Path) -> list[tuple[str, Path]]:
    """All modules in the folder of this one, which it may import by names that it makes up."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    out: list[tuple[str, Path]] = []
    for other in sorted(path.parent.rglob("*.py") if package else path.parent.glob("*.py")):
        parts = other.relative_to(path.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        out += [(".".join(filter(None, (package, *parts))), other)]
    return out


def _absolute(module: str, path: Path, content: bytes) -> Generator[str]:
    """The dotted names that a file imports, relative ones spelled out."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for level, name in _imports(content):
        start = package[: len(package) - level + 1] if level else []
        yield ".".join(filter(None, (*start, name)))


@lru_cache(maxsize=4096)
def _imports(content: bytes) -> tuple[tuple[int, str], ...]:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return ()  # who imports it will hear why
    out: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            out += [(node.level, base)]
            out += [(node.level, f"{base}.{alias.name}".strip(".")) for alias in node.names]
    return tuple(out)


@lru_cache(maxsize=256)
def _version(library: str) -> dict[str, str]:
    if library in sys.stdlib_module_names or not library:
        return {}
    try:
        return {f"{library} (installed)": version(library)}
    except PackageNotFoundError:
        return {}
