"""TensorFlow's fused batch norm in NHWC, its only layout on a CPU; seconds for each line."""

import json
import os
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
tf.config.threading.set_inter_op_parallelism_threads(1)


def prepare(case):
    """The step of one case."""
    n, c, *rest = case["shape"]
    # The fused operator takes 4-D input; other ranks are the same work in another shape.
    spatial = [1, 1] if not rest else [rest[0], -1 if len(rest) > 1 else 1]
    x = tf.reshape(tf.random.normal([n, *rest, c]), [n, *spatial, c])
    x = tf.cast(x, case["dtype"])
    dy, residual = tf.random.normal(x.shape, dtype=tf.float32), tf.random.normal(x.shape)
    dy, residual = tf.cast(dy, x.dtype), tf.cast(residual, x.dtype)
    scale, offset = tf.random.normal([c]), tf.random.normal([c])
    mean, variance = tf.zeros([c]), tf.ones([c])

    def forward(x, scale, offset, residual):
        trains = case["work"] != "evaluation"
        moments = {} if trains else {"mean": mean, "variance": variance}
        y, *_ = tf.compat.v1.nn.fused_batch_norm(
            x, scale, offset, epsilon=1e-5, is_training=trains, **moments
        )
        y = y + residual if case["residual"] else y
        return tf.nn.relu(y) if case["relu"] else y

    @tf.function
    def training(x, scale, offset, residual):
        with tf.GradientTape() as tape:
            wanted = [x, scale, offset] + ([residual] if case["residual"] else [])
            tape.watch(wanted)
            y = forward(x, scale, offset, residual)
        return y, tape.gradient(y, wanted, dy)

    function = training if case["work"] == "training" else tf.function(forward)
    return lambda: function(x, scale, offset, residual)


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
