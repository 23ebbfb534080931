"""TensorFlow and JAX, each in a process of its own that works only when asked.

They are requirements of the benchmark alone: `pip install -r benchmarks/requirements.txt`. Where
one is missing its column stays empty.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
FRAMEWORKS = {"tensorflow": "TensorFlow", "jax": "JAX"}


@contextlib.contextmanager
def other_frameworks(case):
    """Name -> step for each framework that is installed; the processes end with the block."""
    installed = [name for name in FRAMEWORKS if importlib.util.find_spec(name)]
    workers = {name: _Worker(name, case) for name in installed}
    try:
        yield {FRAMEWORKS[name]: worker.step for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()


class _Worker:
    def __init__(self, framework, case):
        command = [sys.executable, HERE / f"worker_{framework}.py", str(torch.get_num_threads())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.ask(json.dumps(vars(case)))

    def ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args[1]} ended with {self.process.wait()}")
        return answer

    def step(self):
        """One step there; the pipe's round trip costs some 20 microseconds more."""
        self.ask("step")

    def end(self):
        self.process.stdin.close()
        self.process.wait()
