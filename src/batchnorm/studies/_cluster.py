"""A Dask cluster as an executor, looked at before hundreds of trials are sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from typing import Any

from batchnorm._extras import way
from batchnorm.studies._context import base

PATIENCE = 10  # seconds: as long for a scheduler to answer
HELD_UP = 60  # seconds: as long for a worker, which loads torch and batchnorm first


@contextmanager
def cluster(address: str) -> Generator[Executor]:
    """Connect to a Dask scheduler; give an executor that runs trials on its workers.

    A worker runs one trial at a time, whatever its threads, so start one process for each core:
    ``dask worker ADDRESS --nworkers auto --nthreads 1``. When a worker is lost, Dask runs its
    trials again on another one; it gives a trial up that has lost several workers.

    Args:
        address: of the scheduler, such as "tcp://host:8786".

    Raises:
        ImportError: Dask is not installed here.
        ValueError: no scheduler answers there, it has no workers, or one of them does not answer,
            has no batchnorm, or another one than this.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"--dask needs {error.name}, not installed here: {way('dask')}"
        ) from error
    client = Client.__new__(Client)
    try:
        client.__init__(address, timeout=PATIENCE, set_as_default=False)
    except Exception as error:  # what an address can be wrong in has many kinds
        # Left to the garbage collector, it closes itself wherever that comes by; where another
        # client is just starting, under a lock that both want, for ever.
        with suppress(Exception):
            client.close(timeout=PATIENCE)
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"no Dask scheduler answers at {address!r} ({said}): give the address that `dask "
            "scheduler` prints, such as tcp://host:8786"
        ) from error
    with client:
        _check(client, address)
        # Not pure: what failed in one run is not remembered by the scheduler for the next.
        yield client.get_executor(pure=False)


def _check(client: Any, address: str) -> None:
    """Refuse a cluster whose workers could only fail, or would give rows of other code.

    Raises:
        ValueError: naming a worker.
    """

    def probe() -> str:  # inside, so that it is sent as code and not by a name of ours
        from batchnorm.studies._context import base

        return base()

    async def ask(worker: str) -> Any:
        answer = client.run(probe, workers=[worker], on_error="return")
        return (await asyncio.wait_for(answer, HELD_UP))[worker]

    async def ask_all() -> dict[str, Any]:
        workers = list(await client.nthreads())
        answers = await asyncio.gather(*map(ask, workers), return_exceptions=True)
        return dict(zip(workers, answers, strict=True))

    answers = client.sync(ask_all)
    if not answers:
        raise ValueError(
            f"the Dask cluster at {address!r} has no workers: start some, `dask worker {address} "
            "--nworkers auto --nthreads 1`"
        )
    here = base()
    for worker, there in answers.items():
        if isinstance(there, TimeoutError):
            raise ValueError(
                f"the Dask worker {worker} gives no answer, not in {HELD_UP} seconds: end it, or "
                "start it anew"
            )
        if isinstance(there, BaseException):
            raise ValueError(
                f"the Dask worker {worker} cannot run trials ({type(there).__name__}: {there}): "
                f"install this batchnorm on every worker, {way('study')}"
            )
        if there != here:
            raise ValueError(
                f"the Dask worker {worker} has other code, so its rows would be others: there "
                f"{there}; here {here}: install the same versions on every worker"
            )
