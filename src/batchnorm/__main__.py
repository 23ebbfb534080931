"""``python -m batchnorm`` and the ``batchnorm`` command."""

import sys
from importlib.metadata import version

from batchnorm._extras import way


def main() -> None:
    """Run the command line on ``sys.argv`` and leave with its exit code."""
    try:
        from batchnorm.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(_without(error.name))
    sys.exit(run(sys.argv[1:]))


def _without(library: str) -> int:
    """What can be said without the command line's libraries; the exit code."""
    if sys.argv[1:] == ["--version"]:
        print(f"batchnorm {version('batchnorm')}")
        return 0
    print(f"batchnorm: the command line needs {library}: {way('study')}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
