"""The command line: parse, call one public function, print."""

import errno
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from batchnorm.screen import Watched, findings
from batchnorm.studies._asked import STUDIES

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: list[str]) -> int:
    """The command line; returns the exit code.

    0: done. 1: some study failed, the others are done. 2: something was asked that cannot be
    done, or the folder cannot be written; one line on stderr says what. 130: Ctrl-C.
    """
    try:
        code = app(arguments, standalone_mode=False, prog_name="batchnorm")
    except (ValueError, ImportError, OSError, typer.TyperException) as error:
        print(f"batchnorm: {_one_line(error)}", file=sys.stderr)
        return 2
    return code or 0


@app.callback(invoke_without_command=True)
def batchnorm(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Batch normalization for PyTorch: what it does to a network, measured on real data.

    Start with [bold]batchnorm study[/]: it trains small networks with and without batch norm on
    real handwritten digits, for about a minute, and leaves a page to look at.
    """
    if show_version:
        print(f"batchnorm {version('batchnorm')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog="Everything, a quick look: [bold]batchnorm study[/]\n\n"
    "Your network, your data, more seeds: "
    "[bold]batchnorm study speed --model mine:net --data CIFAR10 --scale full[/]\n\n"
    "Stopped? The same command goes on where it was."
)
def study(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help=f"One or several of [bold]{'[/], [bold]'.join(STUDIES)}[/]; all if you name none.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Your own network: a function without arguments that returns a torch.nn.Module. "
            "Batch norm is put into it for you. "
            "Left out: the small networks of the studies.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="digits, digits8x8, breast_cancer, a torchvision data set on disk such as "
            "CIFAR10, or your own module:function. Left out: digits.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option(metavar="quick|full", help="A quick look, or more seeds and steps.")
    ] = "quick",
    jobs: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Processes to train in. Left out: one on each core.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the run.")] = Path(
        "runs/study"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the trials an earlier run finished there.")
    ] = False,
) -> int:
    """Measure what is taught about batch norm, and draw a page of it.

    Each claim is tested on networks that differ in batch norm alone, over several seeds, and gets
    one of four verdicts: supported, not supported, contradicted, inconclusive.
    """
    from batchnorm.studies import study as measure

    number = int(jobs) if jobs and jobs.removeprefix("-").isdecimal() else jobs
    with Watched(Console(stderr=True)) as watched:
        try:
            found = measure(
                names,
                model=model,
                data=data,
                scale=scale,
                out=out,
                jobs=number,  # pyright: ignore[reportArgumentType]  # study() says what is wrong
                fresh=fresh,
                on_progress=watched,
            )
        except KeyboardInterrupt:
            watched.close()
            again = shlex.join(["batchnorm", *(word for word in sys.argv[1:] if word != "--fresh")])
            print(
                f"batchnorm: stopped, {watched.kept} in {out}; go on with: {again}", file=sys.stderr
            )
            return 130
    console = Console()
    console.print(findings(found, console.width))
    # Not through Rich, which would break a long path into two lines.
    print(f"The page: {found.report}")
    return 1 if found.failed else 0


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")],
) -> None:
    """Draw the page of a run anew, from its folder alone."""
    from batchnorm.report import render

    print(render(folder))


def _one_line(error: Exception) -> str:
    """What to tell a user of an error: what it is about, and no traceback."""
    if isinstance(error, typer.TyperException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += "; finished trials are kept: make room, and the same command goes on"
    else:
        text = str(error)
    return " ".join(text.split())
