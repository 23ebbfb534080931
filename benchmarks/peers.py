"""TensorFlow and JAX, each in a process of its own that works only when asked.

They are requirements of the benchmark alone: `make .venv-peers` installs them beside the project's
own environment. Where one is missing its column stays empty.
"""

import contextlib
import functools
import json
import subprocess
import sys
from pathlib import Path

import torch
from measure import Elsewhere

HERE = Path(__file__).parent
OWN = HERE.parent / ".venv-peers" / "bin" / "python"
PYTHON = OWN if OWN.exists() else Path(sys.executable)
FRAMEWORKS = {"tensorflow": "TensorFlow", "jax": "JAX"}
VERSIONS = """
import importlib.metadata, importlib.util, json
found, of = {}, importlib.metadata.packages_distributions()
for name in ("tensorflow", "jax"):
    if importlib.util.find_spec(name):
        found[name] = importlib.metadata.version(of[name][0])
print(json.dumps(found))
"""


@functools.cache
def _installed():
    """Name -> version of those that there are; `tensorflow` comes in packages of several names."""
    told = subprocess.run([PYTHON, "-c", VERSIONS], check=True, capture_output=True, text=True)
    return json.loads(told.stdout)


def versions():
    """Of what is timed elsewhere."""
    return {FRAMEWORKS[name]: version for name, version in _installed().items()}


@contextlib.contextmanager
def other_frameworks():
    """A function of a case that gives name -> step; the processes end with the block."""
    workers = {FRAMEWORKS[name]: _Worker(name) for name in _installed()}

    def steps(case):
        for worker in workers.values():
            worker.ask(case=vars(case), calls=1)
        return {name: Elsewhere(worker.ask) for name, worker in workers.items()}

    try:
        yield steps
    finally:
        for worker in workers.values():
            worker.end()


class _Worker:
    def __init__(self, framework):
        command = [PYTHON, HERE / f"worker_{framework}.py", str(torch.get_num_threads())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **words):
        """Seconds that the calls took there."""
        print(json.dumps(words), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args[1]} ended with {self.process.wait()}")
        return json.loads(answer)

    def end(self):
        self.process.stdin.close()
        self.process.wait()
