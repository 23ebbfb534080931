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

def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1])  # pages

answers = []
for word in sys.argv[1:]:
    before = resident()
    answers.append(batchnorm.keep_freed_memory(word == "keep"))
    if word == "keep":  # the first ones leave gaps too small for the next
        answers.append(min([faults() for _ in range(20)]) < 100)
    else:  # pieces between others in use may be found again later, but are not held till then
        answers.append(before - resident() > 32_768 - 100)
print(answers or min([faults() for _ in range(20)]) < 100)
"""


def answers(*words):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_large_memory_is_found_again_where_it_is_kept():
    assert answers() == "False"
    assert answers("keep") == "[True, True]"
    assert answers("keep", "give back") == "[True, True, True, True]"
    assert answers("give back") == "[True, False]"  # nothing was kept


def test_another_c_library_says_no(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert batchnorm.keep_freed_memory() is False
