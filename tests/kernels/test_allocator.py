"""Freed memory is kept by the process where that is asked for, and given back where it is not."""

import ctypes
import subprocess
import sys

import pytest

import batchnorm

PROGRAM = """
import resource, sys, torch, batchnorm

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.Tensor(2**25).fill_(1)  # 128 MB, 32,768 pages; torch.empty is filled by the tests
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

answers = []
for keep in sys.argv[1:]:
    if keep:
        answers.append(batchnorm.keep_freed_memory(keep == "keep"))
    several = [faults() for _ in range(20)]  # the first ones leave gaps too small for the next
    answers.append(several[-1] < 100)
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
