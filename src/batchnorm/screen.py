"""What a run looks like on a terminal, or in a log."""

import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
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
STAGES = {"trials": "Training", "timing": "Timing", "page": "Drawing the page"}
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
        self.done_before, self.said = 0, -math.inf
        self.pace: tuple[float, int] | None = None
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
            self.done_before, self.pace, self.said = progress.done, None, -math.inf
        elif self.pace is None and progress.done > self.done_before:
            # The pace is that after the first one: before it, processes had to start.
            self.pace = time.monotonic(), progress.done
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
        page, last = self.now.stage == "page", self.now.done == self.now.total
        if self.now.done == self.done_before and not page:
            return
        if last or page or time.monotonic() - self.said >= QUIET:
            self.said = time.monotonic()
            best = self.now.best if self.now.stage == "trials" else None
            words = [f"{STAGES[self.now.stage]} {self._counted()}".rstrip().lower(), self._left()]
            words += [f"best validation accuracy {100 * best[0]:.1f} %"] if best else []
            print(", ".join(filter(None, words)), file=self.console.file, flush=True)

    def _counted(self) -> str:
        return "" if self.now.stage == "page" else f"{self.now.done}/{self.now.total}"

    def _left(self) -> str:
        if self.pace is None or self.now.done in (self.pace[1], self.now.total):
            return ""
        spent, done = time.monotonic() - self.pace[0], self.now.done - self.pace[1]
        return f"{_clock(spent / done * (self.now.total - self.now.done))} left"

    def _drawn(self) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        line.add_column(no_wrap=True, justify="right", style="dim")
        line.expand = True
        bar = ProgressBar(
            total=max(self.now.total, 1),
            completed=self.now.done,
            pulse=self.now.done == 0,
        )
        line.add_row(STAGES[self.now.stage], bar, self._counted(), self._left())
        return Group(line, self._best())

    def _best(self) -> Text:
        if self.now.stage == "timing":
            return Text("One training run at a time, for the seconds of a step", style="dim")
        if self.now.best is None:
            return Text("Starting the processes ...", style="dim")
        accuracy, trial = self.now.best
        text = Text("Best so far ", style="dim")
        text.append(f"{100 * accuracy:.1f} %", style="bold green")
        text.append(f" on the validation set, {described(trial)}")
        return text


def findings(run: Run, width: int) -> RenderableType:
    """The verdicts, study by study: the headline in bold, what else was measured, what weakens it.

    Args:
        run: what was found.
        width: of the terminal; a narrow one gets the numbers under the words.
    """
    measures = max((len(verdict.metric) for verdict in run.verdicts), default=0)
    values = max((len(_measured(verdict)) + len(" (1)") for verdict in run.verdicts), default=0)
    words = max(map(len, [*COLORS, "does not apply"]))
    stacked = width < 2 + words + 2 + measures + 2 + values
    lines: list[RenderableType] = []
    for name, title in run.titles.items():
        lines += [Text()] if lines else []
        lines += [Text.assemble((title, "bold"), (f"  {name}", "dim"))]
        table = Table.grid(padding=(0, 2, 0, 0), expand=False)
        table.add_column(width=words)
        # Even columns from one study to the next, as wide as the widest needs.
        table.add_column(width=None if stacked or not measures else measures)
        table.add_column()
        notes = _add(table, [v for v in run.verdicts if v.study == name], stacked)
        if name in run.failed:
            table.add_row(Text("failed", "bold red"), Text(run.failed[name]))
        if name in run.not_applicable:
            table.add_row(Text("does not apply", "dim"), Text(run.not_applicable[name]))
        lines += [Padding(part, (0, 0, 0, 2)) for part in (table, notes)]
    held = "; or ".join(dict.fromkeys(v.interval for v in run.verdicts if v.interval))
    lines += [Text(f"\nIn brackets: {held}.", "dim")] if held else []
    return Group(*lines)


def _add(table: Table, verdicts: list[Verdict], stacked: bool) -> Table:
    """A row for each verdict; gives what weakens them, by number."""
    cautions = list(dict.fromkeys(v.caution for v in verdicts if v.caution))
    for verdict in verdicts:
        style = "" if table.rows else "bold"
        word = Text(verdict.verdict, f"{style} {COLORS.get(verdict.verdict, '')}".strip())
        metric, measured = Text(verdict.metric, style), Text(_measured(verdict), style)
        if verdict.caution:
            measured.append(f" ({1 + cautions.index(verdict.caution)})", "yellow")
        if stacked:
            table.add_row(word, Group(metric, measured))
        else:
            table.add_row(word, metric, measured)
    notes = Table.grid(padding=(0, 1, 0, 0))
    for i, caution in enumerate(cautions, start=1):
        notes.add_row(Text(f"({i})", "yellow"), Text(caution, "dim"))
    return notes


def _measured(verdict: Verdict) -> str:
    value, low, high = verdict.value, verdict.low, verdict.high
    if value is None and low is None and high is None:
        return "not measured"
    if value is None:
        bound = f"at most {high:.3g}" if low is None else f"at least {low:.3g}"
        return f"{bound} {verdict.unit}"
    ends = ["open" if end is None else f"{end:.3g}" for end in (low, high)]
    interval = "" if ends == ["open", "open"] else f" [{ends[0]}, {ends[1]}]"
    return f"{value:.3g} {verdict.unit}{interval}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
