"""What a run looks like on a terminal, or in a log."""

import math
import time
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchnorm.studies import Progress, Run
from batchnorm.studies._sitting import described
from batchnorm.studies._verdict import Verdict

COLORS = {
    "supported": "green",
    "not supported": "yellow",
    "contradicted": "red",
    "inconclusive": "cyan",
}
STAGES = {"trials": "Training", "timing": "Timing", "page": "Drawing"}
QUIET = 10.0  # seconds between lines where there is no terminal to draw on


class Watched:
    """Shows progress while its context lasts: a bar on a terminal, a line now and then elsewhere.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.now = Progress("trials", 0, 0, 0)
        self.trials = self.now
        self.began, self.done_before, self.said = time.monotonic(), 0, -math.inf
        self.live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self.live = Live(
                console=console, get_renderable=self._drawn, refresh_per_second=8, transient=True
            )

    @property
    def kept(self) -> str:
        """What an interrupted run leaves."""
        if not self.trials.total:
            return "nothing was begun"
        return f"{self.trials.done} of {self.trials.total} trials are kept"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, progress: Progress) -> None:
        """Take in where the run stands."""
        first = not self.trials.total
        if first or progress.stage != self.now.stage:
            self.began, self.done_before, self.said = time.monotonic(), progress.done, -math.inf
        self.now = progress
        if progress.stage == "trials":
            self.trials = progress
        if first:
            earlier = f", {progress.resumed} finished earlier" if progress.resumed else ""
            self.console.print(f"{progress.total} trials{earlier}", highlight=False)
            if self.live:
                self.live.start()
        if not self.live:
            self._say()

    def close(self) -> None:
        """Take the bar away."""
        if self.live:
            self.live.stop()

    def _say(self) -> None:
        last = self.now.done == self.now.total
        if (last or time.monotonic() - self.said >= QUIET) and self.now.done > self.done_before:
            self.said = time.monotonic()
            words = [f"{STAGES[self.now.stage].lower()} {self.now.done}/{self.now.total}"]
            words += [f"{self._left()} left"] if not last else []
            words += (
                [f"best validation accuracy {100 * self.now.best[0]:.1f} %"]
                if self.now.best
                else []
            )
            print(", ".join(words), file=self.console.file, flush=True)

    def _left(self) -> str:
        done = self.now.done - self.done_before
        if done <= 0:
            return "-:--"
        spent = time.monotonic() - self.began
        return _clock(spent / done * (self.now.total - self.now.done))

    def _drawn(self) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        line.add_column(no_wrap=True, justify="right", style="dim")
        line.expand = True
        line.add_row(
            STAGES[self.now.stage],
            ProgressBar(total=max(self.now.total, 1), completed=self.now.done),
            f"{self.now.done}/{self.now.total}",
            f"{self._left()} left",
        )
        return Group(line, self._best())

    def _best(self) -> Text:
        if self.now.best is None:
            return Text("Starting the processes ...", style="dim")
        accuracy, trial = self.now.best
        text = Text("Best so far ", style="dim")
        text.append(f"{100 * accuracy:.1f} %", style="bold green")
        text.append(f" on the validation set, {described(trial)}")
        return text


def findings(run: Run) -> Table:
    """The table of verdicts: a study's headline in bold, then what else it measured."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("Study")
    table.add_column("Measured (95 % interval)")
    table.add_column("Verdict", no_wrap=True)
    for name, title in run.titles.items():
        if table.rows:
            table.add_section()
        mine = [verdict for verdict in run.verdicts if verdict.study == name]
        if not mine:
            said = (
                ("failed", run.failed[name])
                if name in run.failed
                else ("does not apply", run.not_applicable.get(name, ""))
            )
            table.add_row(
                Text(title, "bold"),
                Text(said[1]),
                Text(said[0], "red" if name in run.failed else "dim"),
            )
        for place, verdict in enumerate(mine):
            style = "bold" if place == 0 else ""
            label = f"{title}: {verdict.metric}" if place == 0 else f"  {verdict.metric}"
            table.add_row(
                Text(label, style),
                Text(_measured(verdict), style),
                Text(verdict.verdict, f"{style} {COLORS.get(verdict.verdict, '')}".strip()),
            )
    return table


def _measured(verdict: Verdict) -> str:
    if verdict.value is None:
        return "not measured"
    ends = ["open" if end is None else f"{end:.3g}" for end in (verdict.low, verdict.high)]
    interval = "" if ends == ["open", "open"] else f" [{ends[0]}, {ends[1]}]"
    return f"{verdict.value:.3g} {verdict.unit}{interval}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
