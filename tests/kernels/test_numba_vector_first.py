"""Parts of vectors on processors that have no instruction for them, as far as this one can act so."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from processes import python

pytest.importorskip("numba")

WITHOUT = {"no AVX-512": "+avx2,+fma,+f16c", "no masks at all": "+f16c"}
pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="names features of x86"
)


def older(features):
    return {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}


@pytest.mark.parametrize("features", WITHOUT.values(), ids=WITHOUT)
def test_vectors_in_memory(features):
    """All that `test_numba_vector` says of them."""
    tests = Path(__file__).with_name("test_numba_vector.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    run = subprocess.run(
        command, env=os.environ | older(features), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module", params=WITHOUT.values(), ids=WITHOUT)
def branches(request):
    """How many the code for a copy of lanes takes, for each type: LLVM's of one such processor."""
    found = python(
        """
        import json
        import re
        import numba
        import numpy as np
        from batchnorm.kernels import _numba_vector as vectors
        from batchnorm.kernels import _numba_vector_memory as memory

        def branches(tag):
            @numba.njit
            def copy(x, y, n, tag):
                mask = vectors.first(n, tag)
                memory.write(y, 0, memory.read(x, 0, mask, tag), mask, tag)

            x, y = np.ones(16), np.zeros(16)
            copy(x.ctypes.data, y.ctypes.data, 3, tag)
            (code,) = copy.inspect_asm().values()
            body = code[code.index("copy"):code.index("cpython")]
            return len(re.findall(r"\\n\\s+j(?!mp)\\w+\\s", body))

        types = "uint16", "int16", "float32", "float64"
        print(json.dumps({name: branches(getattr(np, name)(0)) for name in types}))
        """,
        **older(request.param),
    )
    return json.loads(found)


@pytest.mark.parametrize("tag", ["uint16", "int16", "float32", "float64"])
def test_lanes_are_not_asked_for_one_by_one(branches, tag):
    """LLVM by itself takes two branches for each lane that is copied."""
    assert branches[tag] <= 12
