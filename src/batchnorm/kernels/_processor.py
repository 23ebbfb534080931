"""What the processor that Numba compiles for can do."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def has(feature: str) -> bool:
    """Whether it has what LLVM calls `feature`; the environment may name another processor's."""
    from llvmlite import binding
    from numba.core import config

    told: Any = getattr(config, "CPU_FEATURES", None)
    if told is not None:
        return f"+{feature}" in told.split(",")
    if feature.startswith("avx") and not getattr(config, "ENABLE_AVX", True):
        return False
    return bool(binding.get_host_cpu_features().get(feature))
