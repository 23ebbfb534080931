"""Whether anybody would see a call on its way through torch's dispatcher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Key = torch._C.DispatchKey


def _bits(*keys: torch._C.DispatchKey) -> int:
    together = torch._C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        together = together.add(key)
    return together.raw_repr()


_TYPES = (Tensor, torch.nn.Parameter)
# Tensors on the CPU, and those made in inference mode: no wrapper, lazy sign or other layout.
_PLAIN = {
    _bits(_Key.CPU, _Key.ADInplaceOrView, _Key.AutogradCPU, _Key.AutocastCPU),
    _bits(_Key.CPU, _Key.AutocastCPU),
}
# What a thread adds to the keys of each tensor where no mode is active.
_QUIET = {_bits(_Key.BackendSelect, _Key.ADInplaceOrView), _bits(_Key.BackendSelect)}

_keys = torch._C._dispatch_keys
_included = torch._C._dispatch_tls_local_include_set
_function_mode = torch._C._is_torch_function_mode_enabled
_profiling = torch.autograd._profiler_enabled


def quiet() -> bool:
    """Whether nobody looks at calls whose tensors have no keys that say so."""
    return not (
        torch.compiler.is_compiling()
        or _function_mode()
        or _profiling()
        or forward_ad._current_level >= 0
    )


def unseen(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors would pass the dispatcher without anybody seeing it."""
    if not quiet() or _included().raw_repr() not in _QUIET:
        return False
    for t in tensors:
        if t is not None and (type(t) not in _TYPES or _keys(t).raw_repr() not in _PLAIN):
            return False
    return True
