"""Batch norm as JAX users write it, compiled, channels last; a case or a step for each line of input."""

import json
import os
import sys

os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen={'true' if int(sys.argv[1]) > 1 else 'false'}"
)
import jax
import jax.numpy as jnp


def prepare(case):
    """The step of one case."""
    n, c, *rest = case["shape"]
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy, residual = (jax.random.normal(k, (n, *rest, c)).astype(case["dtype"]) for k in keys)
    scale, offset = jnp.ones(c), jnp.zeros(c)
    axes = tuple(range(x.ndim - 1))

    def forward(x, scale, offset, residual):
        wide = x.astype(jnp.float32)
        if case["work"] == "evaluation":
            mean, var = jnp.zeros(c), jnp.ones(c)
        else:
            mean, var = wide.mean(axes), wide.var(axes)
        y = (wide - mean) * jax.lax.rsqrt(var + 1e-5) * scale + offset
        y = y + residual if case["residual"] else y
        return (jax.nn.relu(y) if case["relu"] else y).astype(x.dtype)

    def training(x, scale, offset, residual):
        y, pull = jax.vjp(forward, x, scale, offset, residual)
        return y, pull(dy)

    function = jax.jit(training if case["work"] == "training" else forward)
    return lambda: jax.block_until_ready(function(x, scale, offset, residual))


def main():
    step = None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked:
            step = prepare(asked["case"])
            step()
        step()
        print("done", flush=True)


main()
