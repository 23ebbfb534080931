"""A run as it goes on: on a terminal, or in a log."""

import math
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from batchnorm.screen._clock import about, clock
from batchnorm.studies import Progress, Share
from batchnorm.studies._sitting import described

STAGES = {"trials": "Training", "timing": "Timing", "page": "Drawing the page"}
STATES = {"failed": "bold red", "not applicable": "dim"}
AROUND = 4  # lines that are not studies
QUIET = 10.0  # seconds between lines where there is no terminal to draw on


class Watched:
    """Shows progress while its context lasts: a bar on a terminal, a line now and then elsewhere.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.now = Progress("trials", 0, 0, 0)
        self.trials, self.begun = self.now, False
        self.done_before, self.said, self.told = 0, -math.inf, 0.0
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
        first, self.begun = not self.begun, True
        if first or progress.stage != self.now.stage:
            self.done_before, self.said = progress.done, -math.inf
        if progress.seconds_left != self.now.seconds_left:
            self.told = time.monotonic()
        self.now = progress
        if progress.stage == "trials":
            self.trials = progress
        if first:
            self._announce()
            if self.live:
                self.live.start()
        if not self.live:
            self._say()

    def close(self) -> None:
        """Take the bar away."""
        if self.live:
            self.live.stop()

    def _announce(self) -> None:
        """What there is to do, and what will be lost by it."""
        now = self.now
        if now.replaces:
            line = (
                "This run's page will take the place of the one that is there, made by: "
                f"{now.replaces}; another folder (--out) keeps both"
            )
            self.console.print(line, highlight=False, soft_wrap=True)
        if now.total:
            words = [f"{now.total} trial{'' if now.total == 1 else 's'}"]
            words += [f"{now.resumed} finished earlier"] if now.resumed else []
            if now.seconds_left and now.done < now.total:
                words.append(f"estimated at {about(now.seconds_left)}")
            self.console.print(", ".join(words), highlight=False)

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
        """As it was told, less what has gone by since."""
        if self.now.seconds_left is None or self.now.stage == "page":
            return ""
        return f"{clock(max(1.0, self.now.seconds_left - (time.monotonic() - self.told)))} left"

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
        studies = self._studies() if self.now.stage == "trials" else Text()
        return Group(line, *([studies] if len(self.now.studies) > 1 else []), self._best())

    def _studies(self) -> RenderableType:
        """A study a line, those at work first where not all have room."""
        room = max(3, self.console.height - AROUND)
        shown = list(self.now.studies)
        if len(shown) > room:
            at_work = sorted(shown, key=_order)[: room - 1]
            shown = [share for share in shown if share in at_work]
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(width=20)
        table.add_column(no_wrap=True, justify="right", style="dim")
        for share in shown:
            if share.state:
                table.add_row(f"  {share.study}", Text(share.state, STATES[share.state]), "")
                continue
            bar = ProgressBar(total=max(share.total, 1), completed=share.done)
            table.add_row(f"  {share.study}", bar, f"{share.done}/{share.total}")
        rest = len(self.now.studies) - len(shown)
        return Group(table, *([Text(f"  and {rest} more", "dim")] if rest else []))

    def _best(self) -> Text:
        if self.now.stage == "timing":
            return Text("One training run at a time, for the seconds of a step", style="dim")
        if self.now.best is None:
            starts = self.now.stage == "trials" and self.now.done < self.now.total
            return Text("Starting the processes ..." if starts else "", style="dim")
        accuracy, trial = self.now.best
        text = Text("Best so far ", style="dim")
        text.append(f"{100 * accuracy:.1f} %", style="bold green")
        text.append(f" on the validation set, {described(trial)}")
        return text


def _order(share: Share) -> int:
    """Those at work first, then those that wait, then those that are done."""
    if share.state or share.done == share.total:
        return 2
    return 0 if share.done else 1
