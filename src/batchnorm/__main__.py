"""``python -m batchnorm`` and the ``batchnorm`` command."""

import sys


def main() -> None:
    """Run the command line on ``sys.argv`` and leave with its exit code."""
    try:
        from batchnorm.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"batchnorm: the command line needs {error.name}: pip install 'batchnorm[study]'",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
