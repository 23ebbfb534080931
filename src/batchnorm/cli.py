"""The command line: parse, call one public function, print."""

import errno
import inspect
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from batchnorm.screen import Watched, findings, listing

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def flowing(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with a line a paragraph in its docstring: typer keeps breaks, and wraps again."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    command.__doc__ = "\n\n".join(" ".join(lines.split()) for lines in paragraphs)
    return command


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
@flowing
def batchnorm(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
    ] = False,
) -> None:
    """Batch normalization for PyTorch: what it does to a network, measured on real data.

    Start with [bold]batchnorm study[/]: it trains small networks with and without batch norm on
    real handwritten digits, for some minutes, and leaves a page to look at.
    """
    if show_version:
        print(f"batchnorm {version('batchnorm')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help="[bold]speed[/], [bold]learning_rate[/], ...; [bold]--list[/] names them all. "
        "Left out: all of them.",
        show_default=False,
    ),
]
Listed = Annotated[
    bool,
    typer.Option("--list", help="Say what the studies are and how long they take, and leave."),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="cnn, a small convolutional network; or your own, module:function: a function without "
        "arguments that returns a torch.nn.Module. Batch norm is put into it for you, or taken out "
        "where it has some. Left out, or mlp: the small fully connected networks of the studies.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="digits, digits8x8, breast_cancer, a torchvision data set on disk such as CIFAR10, a "
        "folder with a folder of images for each class, or your own module:function. "
        "Left out: digits.",
        show_default=False,
    ),
]
Scale = Annotated[
    str, typer.Option(metavar="quick|full", help="A quick look, or more seeds and steps.")
]
Seed = Annotated[
    str,
    typer.Option(
        metavar="N",
        help="The first of the seeds: 100 gives a second run that shares no seed with the first.",
    ),
]
Jobs = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Processes to train in. Left out: one on each core.",
        show_default=False,
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Train on the Dask cluster of this scheduler, such as tcp://host:8786.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder of the run.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Forget the trials an earlier run finished there.")
]


@app.command(
    epilog="Everything, a quick look: [bold]batchnorm study[/]\n\n"
    "Your network, your data, more seeds: "
    "[bold]batchnorm study speed --model mine:net --data CIFAR10 --scale full[/]\n\n"
    "Stopped? The same command goes on where it was."
)
@flowing
def study(
    names: Names = None,
    listed: Listed = False,
    model: Model = None,
    data: Data = None,
    scale: Scale = "quick",
    seed: Seed = "0",
    jobs: Jobs = None,
    dask: Dask = None,
    out: Out = Path("runs/study"),
    fresh: Fresh = False,
) -> int:
    """Measure what is taught about batch norm, and draw a page of it.

    Each claim is tested on networks that differ in batch norm alone, over several seeds, and gets
    one of four verdicts: supported, not supported, contradicted, inconclusive.
    """
    from batchnorm import studies

    asked: dict[str, Any] = {"model": model, "data": data, "scale": scale}
    asked |= {"seed": _number(seed), "jobs": _number(jobs)}
    if listed:
        Console().print(listing(*studies.overview(names, **asked)))
        return 0
    with Watched(Console(stderr=True)) as watched:
        try:
            with _executor(dask) as executor:
                found = studies.study(
                    names, **asked, executor=executor, out=out, fresh=fresh, on_progress=watched
                )
        except KeyboardInterrupt:
            watched.close()
            again = shlex.join(["batchnorm", *(word for word in sys.argv[1:] if word != "--fresh")])
            print(
                f"batchnorm: stopped, {watched.kept} in {out}; go on with: {again}", file=sys.stderr
            )
            return 130
    console = Console()
    console.print(findings(found, console.width, quick=scale == "quick"))
    # Not through Rich, which would break a long path into two lines.
    print(f"The page: {found.report}")
    return 1 if found.failed else 0


def _number(word: str | None) -> int | str | None:
    """A whole number as such; anything else as it was typed, for the message that refuses it."""
    return int(word) if word and word.removeprefix("-").isdecimal() else word


def _executor(dask: str | None) -> AbstractContextManager[Executor | None]:
    if dask is None:
        return nullcontext()
    from batchnorm.studies._cluster import cluster

    return cluster(dask)


@app.command()
@flowing
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")],
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Take only the rows: verdicts and charts anew, by the studies as they are now.",
        ),
    ] = False,
) -> int:
    """Draw the page of a run anew, from its folder alone; nothing is trained.

    Verdicts and charts are those that the run left in the folder, or, with --measure, measured
    anew from its rows, which is also how a folder without charts gets its page.
    """
    if not measure:
        from batchnorm.report import render

        print(render(folder))
        return 0
    from batchnorm import studies

    found = studies.remeasure(folder)
    console = Console()
    console.print(findings(found, console.width))
    print(f"Measured anew from the rows of {found.trials} trials. The page: {found.report}")
    return 1 if found.failed else 0


def _one_line(error: Exception) -> str:
    """What to tell a user of an error: what it is about, and no traceback."""
    if isinstance(error, typer.TyperException):
        context: Any = getattr(error, "ctx", None)
        text = error.format_message()
        text += f" See {context.command_path} --help" if context else ""
    elif isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text += "; finished trials are kept: make room, and the same command goes on"
    else:
        text = str(error)
    return " ".join(text.split())
