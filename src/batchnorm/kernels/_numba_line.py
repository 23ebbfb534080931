"""What every loop does with a vector of elements: centre, line up, bend, and back.

`words` is ``(mean, low, scale, bias)`` in vectors, with the mean in two words where elements are
computed in float32; `r` is the address of the residual, or None. From the output, which was written
over the input and is x then, the bias stands where the mean does.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_bend import bend, bend_back, unbend
from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_scalar import fit, roomy
from batchnorm.kernels._numba_vector import centre, filled
from batchnorm.kernels._numba_vector_memory import read


@inline_mapping
def in_words(line: Any, tag: Any) -> Any:
    """The words of ``line = (mean, scale, bias)``, one channel's."""
    mean, scale, bias = line
    low = mean - float(fit(mean, tag))
    return filled(mean, tag), filled(low, tag), filled(scale, tag), filled(bias, tag)


@inline_mapping
def in_vectors(pull: Any, tag: Any) -> Any:
    """One channel's ``(a, b, invstd)`` for `pulled`."""
    return filled(pull[0], tag), filled(pull[1], tag), filled(pull[2], tag)


@inline_mapping
def _line_up(x: Any, j: Any, r: Any, i: Any, words: Any, mask: Any, tag: Any) -> Any:
    """``d = x - mean`` and ``z = d scale + bias + r``, from j on in x and from i on in r."""
    mean, low, scale, bias = words
    d = centre(read(x, j, mask, tag), mean, low)
    z = d * scale + bias
    if r is not None:
        z = z + read(r, i, mask, tag)
    return d, z


@inline_mapping
def normal(x: Any, j: Any, r: Any, i: Any, words: Any, bent: Any, mask: Any, tag: Any) -> Any:
    """``y = f(z)``."""
    return bend(_line_up(x, j, r, i, words, mask, tag)[1], bent)


@inline_mapping
def gradient(
    x: Any, j: Any, r: Any, i: Any, dy: Any, k: Any, words: Any, bent: Any, mask: Any, tag: Any
) -> Any:
    """``g = f'(z) dy``, and d; dy from k on. From the output, ``d = z - bias``."""
    if bent[4]:
        z = unbend(read(x, j, mask, tag), bent)
        d = centre(z, words[0], words[1])
    else:
        d, z = _line_up(x, j, r, i, words, mask, tag)
    return bend_back(read(dy, k, mask, tag), z, bent), d


@inline_mapping
def pulled(
    x: Any, j: Any, r: Any, i: Any, dy: Any, k: Any, words: Any, pull: Any, bent: Any, mask: Any,
    tag: Any,
) -> Any:  # fmt: skip
    """``dx = scale g - (a + b xhat)`` with ``pull = (a, b, invstd)``, and g.

    For elements of float32, which are computed in float64, b has taken invstd in.
    """
    a, b, invstd = pull
    g, d = gradient(x, j, r, i, dy, k, words, bent, mask, tag)
    return words[2] * g - (a + b * (d if roomy(tag) else invstd * d)), g
