"""Many trials, each run once: in any order, over any executor, through workers that die."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait

from batchnorm.studies._workers import Outcome, Runs, Workers, reason

STRIKES = 3  # a trial whose worker died so often is not tried again
GIVE_UP = 10  # so many deaths with no trial finished in between: it is not the trials


def run_trials(
    trials: Mapping[str, Runs],
    workers: Workers,
    on_outcome: Callable[[str, Outcome], object],
    *,
    wanted: Callable[[str], bool] = lambda key: True,
) -> None:
    """Run every trial and report each as it ends, in the calling thread.

    When a worker dies, nobody knows which of the trials that were out has killed it. All of them
    go back to be run again; one that was out at two deaths is then run alone, so that a third
    death is surely its own doing.

    Args:
        trials: by key, in the order in which they start.
        workers: where they run.
        on_outcome: called with the key and the outcome.
        wanted: asked before a trial starts; one that is not wanted any more is left out.

    Raises:
        Whatever ``on_outcome`` raises, and KeyboardInterrupt; trials that a given executor
            has not begun are cancelled, those of our own workers end with them.
    """
    _Rounds(trials, workers, on_outcome, wanted).run()


class _Rounds:
    def __init__(
        self,
        trials: Mapping[str, Runs],
        workers: Workers,
        on_outcome: Callable[[str, Outcome], object],
        wanted: Callable[[str], bool],
    ) -> None:
        self.trials, self.workers = trials, workers
        self.on_outcome, self.wanted = on_outcome, wanted
        self.waiting, self.alone = deque(trials), deque[str]()
        self.out: dict[Future[Outcome], str] = {}
        self.strikes = Counter[str]()
        self.deaths = 0

    def run(self) -> None:
        try:
            while self.waiting or self.alone or self.out:
                broken = self.hand_over()
                ended = wait(self.out, return_when=FIRST_COMPLETED).done if self.out else ()
                suspects = self.take_in(ended)
                if broken or suspects:
                    suspects += self.take_in(wait(self.out).done)
                    self.after_death(suspects)
        finally:
            if self.workers.given is not None:
                self.cancel(lambda key: True)

    def hand_over(self) -> bool:
        """Fill the window; whether a worker was found dead meanwhile."""
        while queue := self.next():
            key = queue.popleft()
            if not self.wanted(key):
                continue
            try:
                self.out[self.workers.submit(self.trials[key])] = key
            except BrokenExecutor:
                queue.appendleft(key)
                return True
        return False

    def next(self) -> deque[str] | None:
        """Where the next trial waits; None while it has to wait."""
        if self.waiting:
            return self.waiting if len(self.out) < self.workers.window else None
        return self.alone if self.alone and not self.out else None

    def take_in(self, ended: set[Future[Outcome]] | tuple[()]) -> list[str]:
        """Report what ended; the keys of those that ended with their worker."""
        suspects: list[str] = []
        for future in [future for future in self.out if future in ended]:  # as handed over
            key = self.out.pop(future)
            if future.cancelled():
                # By us, or with the cluster that it was to run on.
                suspects += [key] if self.wanted(key) else []
                continue
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                suspects.append(key)
                continue
            self.deaths = 0
            failed = Outcome([], 0.0, reason(error)) if error else None
            outcome = failed or future.result()
            self.on_outcome(key, outcome)
            if outcome.failure is not None and self.workers.given is not None:
                self.cancel(lambda key: not self.wanted(key))
        return suspects

    def cancel(self, which: Callable[[str], bool]) -> None:
        """Cancel those that have not begun; not of our own workers, where loky would stumble."""
        for future, key in list(self.out.items()):
            if which(key):
                future.cancel()

    def after_death(self, suspects: list[str]) -> None:
        self.deaths += 1
        if self.workers.given is not None or self.deaths >= GIVE_UP:
            whose = "the given executor" if self.workers.given is not None else "worker processes"
            self.fail_all(suspects, f"{whose} broke down and cannot be replaced")
            return
        self.workers.replace()
        # In the order of the trials, whatever the order in which futures were seen to break.
        order = {key: place for place, key in enumerate(self.trials)}
        for key in sorted(suspects, key=order.__getitem__, reverse=True):
            self.strikes[key] += 1
            if self.strikes[key] >= STRIKES:
                died = f"its worker process died {STRIKES} times (killed, crashed or out of memory)"
                self.on_outcome(key, Outcome([], 0.0, died))
            elif self.strikes[key] == STRIKES - 1:
                self.alone.append(key)
            else:
                self.waiting.appendleft(key)

    def fail_all(self, suspects: list[str], why: str) -> None:
        for key in [*suspects, *self.waiting, *self.alone]:
            self.on_outcome(key, Outcome([], 0.0, why))
        self.waiting.clear()
        self.alone.clear()
