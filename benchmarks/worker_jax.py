"""Batch norm as JAX users write it, compiled, channels last; the seconds of some calls for each line."""

import json
import os
import sys
import time

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

    arguments = {"x": x, "scale": scale, "offset": offset}
    if case["residual"]:
        arguments["residual"] = residual
    evaluates = case["work"] == "evaluation"
    running = {"mean": jnp.zeros(c), "var": jnp.ones(c)} if evaluates else {}

    def forward(arguments, running):
        x = arguments["x"]
        wide = x.astype(jnp.float32)
        mean, var = running.get("mean"), running.get("var")
        if not evaluates:
            mean, var = wide.mean(axes), wide.var(axes)
        y = (wide - mean) * jax.lax.rsqrt(var + 1e-5) * arguments["scale"] + arguments["offset"]
        y = y + arguments["residual"] if case["residual"] else y
        return (jax.nn.relu(y) if case["relu"] else y).astype(x.dtype)

    def training(arguments, running, dy):
        y, pull = jax.vjp(lambda given: forward(given, running), arguments)
        return y, pull(dy)

    if case["work"] == "training":
        function, given = jax.jit(training), (arguments, running, dy)
    else:
        function, given = jax.jit(forward), (arguments, running)
    return lambda: jax.block_until_ready(function(*given))


def main():
    step = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "case" in asked:
            step = prepare(asked["case"])
            step()
        start = time.perf_counter()
        for _ in range(asked["calls"]):
            step()
        print(json.dumps(time.perf_counter() - start), flush=True)


main()
