"""Where trials run: processes of our own that are replaced when they die, or a given executor."""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Generator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from batchnorm.train import Row

COLD = 2  # trials of a process: one without batch norm and one with it


class Runs(Protocol):
    """Whatever can be sent to a worker: a :class:`batchnorm.studies._trial.Trial`."""

    def run(self) -> list[Row]: ...


class Outcome(NamedTuple):
    """What came of one trial: rows and the seconds they took, or the reason why there are none.

    Args:
        rows: of the trial.
        seconds: they took.
        failure: why there are no rows.
        cold: one of the first in its process, which also load and compile what they call.
    """

    rows: list[Row]
    seconds: float
    failure: str | None = None
    cold: bool = False


class Workers:
    """Processes that start with the first trial and end with the context.

    Args:
        jobs: how many; each runs one trial at a time.
        executor: use this one instead. It is neither replaced nor shut down.
    """

    def __init__(self, jobs: int, executor: Executor | None = None) -> None:
        self.jobs = jobs
        self.given = executor
        self.own: Any = None

    @property
    def window(self) -> float:
        """How many trials to hand over at a time: with few out, few are suspect when one kills."""
        return 2 * self.jobs if self.given is None else math.inf

    def submit(self, trial: Runs) -> Future[Outcome]:
        """Have ``trial`` run by some worker.

        Raises:
            BrokenExecutor: a worker has died; :meth:`replace` the lot.
        """
        if self.given is not None:
            return self.given.submit(attempt, trial)
        with _no_interrupt():
            if self.own is None:
                self.own = _processes(self.jobs)
            return self.own.submit(attempt, trial)

    def replace(self) -> None:
        """Give up all processes; the next trial starts new ones."""
        self._stop()

    def _stop(self) -> None:
        if self.own is not None:
            self.own.shutdown(wait=True, kill_workers=True)
            self.own = None

    def __enter__(self) -> Self:
        # loky looks for grandchildren with pgrep and warns where there is none; there are none.
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", message="Failed to kill subprocesses")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        if interrupted and threading.current_thread() is threading.main_thread():
            # A second Ctrl-C must not leave half of them behind.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._stop()
            signal.signal(signal.SIGINT, before)
        self._stop()
        self._warnings.__exit__(kind, error, traceback)


def attempt(trial: Runs) -> Outcome:
    """Run a trial, in a worker: an exception is an outcome; a number that is not finite is None."""
    # Seeds are global to a process, and so is the number of torch's threads.
    with _one_at_a_time:
        cold = next(_begun) < COLD
        start = time.perf_counter()
        try:
            rows = trial.run()
        except (Exception, SystemExit) as error:
            return Outcome([], 0.0, reason(error))
        seconds = time.perf_counter() - start
    told = [{name: _finite(value) for name, value in row.items()} for row in rows]
    return Outcome(told, seconds, cold=cold)


def reason(error: BaseException) -> str:
    """One line: what was raised, and where.

    >>> reason(ValueError("no  way"))
    'ValueError: no way'
    """
    text = " ".join(str(error).split())
    frames = extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{where}" if text else f"{type(error).__name__}{where}"


_one_at_a_time, _begun = threading.Lock(), count()


def _finite(value: float | int | None) -> float | int | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _processes(jobs: int) -> Executor:
    from loky import ProcessPoolExecutor
    from loky.backend import resource_tracker

    # Started first, since its start would lift the block on Ctrl-C under which workers are born.
    resource_tracker.ensure_running()
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return ProcessPoolExecutor(jobs, initializer=_begin, initargs=(os.getpid(),), env=one_thread)


def _begin(parent: int) -> None:
    """First thing in a worker: Ctrl-C is the parent's to handle, and no parent means no work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _no_interrupt() -> Generator[None]:
    """Hold Ctrl-C back; a process started meanwhile never sees it, not even while it imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
