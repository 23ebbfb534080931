"""Freed memory is kept by the process where that is asked for, and given back where it is not."""

import ctypes
import subprocess
import sys

import pytest

import batchnorm

PROGRAM = """
import sys, torch, batchnorm
from batchnorm.kernels import _memory

def warm():
    large = torch.Tensor(2**25).add_(1)  # 128 MB
    del large
    return _memory.prepare(torch.Tensor(2**25))

answers = []
for keep in sys.argv[1:]:
    if keep:
        answers.append(batchnorm.keep_freed_memory(keep == "keep"))
    answers.append((warm(), warm())[1])  # the first may leave a gap too small for the second
print(answers)
"""


def answers(*words):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_large_memory_is_found_again_where_it_is_kept():
    assert answers("") == "[False]"
    assert answers("keep") == "[True, True]"
    assert answers("keep", "give back") == "[True, True, True, False]"


def test_another_c_library_says_no(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert batchnorm.keep_freed_memory() is False
