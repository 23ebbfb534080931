"""What TensorFlow itself computes, written to values.json for test_interop.py.

TensorFlow is no dependency of this project; to write the values again:

    python3 -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0
    CUDA_VISIBLE_DEVICES= TF_ENABLE_ONEDNN_OPTS=0 /tmp/tf/bin/python tests/tensorflow_values/make.py
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

NHWC, NCHW = (2, 2, 3, 3), (2, 3, 2, 2)
# name: shapes of x, mean, variance, offset, scale (None: not given); variance_epsilon
NORMALIZATION = {
    "channels last": (NHWC, (3,), (3,), (3,), (3,), 1e-3),
    "channels first": (NCHW, (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 1, 1), 1e-3),
    "kept axes": (NCHW, (1, 3, 1, 1), (1, 3, 1, 1), (1, 3, 1, 1), (1, 3, 1, 1), 1e-5),
    "features": ((5, 3), (3,), (3,), (3,), (3,), 1e-5),
    "no scale": ((5, 3), (3,), (3,), (3,), None, 1e-5),
    "no offset": ((5, 3), (3,), (3,), None, (3,), 1e-5),
    "neither": (NHWC, (3,), (3,), None, None, 1e-3),
    "an example's own": ((4, 5), (4, 1), (4, 1), (5,), (5,), 1e-5),
    "scalars": ((5,), (), (), (), (), 1e-3),
    "different shapes": ((4, 1, 3), (3,), (4, 1, 1), (), (4, 1, 3), 1e-3),
    "larger than x": ((1, 3), (4, 1), (4, 3), (2, 1, 3), (3,), 1e-3),
    "one value": ((1, 1), (1,), (1,), (1,), (1,), 1e-3),
    "no examples": ((0, 3), (3,), (3,), (3,), (3,), 1e-3),
    "large eps": ((5, 3), (3,), (3,), (3,), (3,), 10.0),
    "zero variance": ((5, 3), (3,), (3,), (3,), (3,), 1e-3),
    "far from zero": ((5, 3), (3,), (3,), (3,), (3,), 1e-5),
}
# name: dtypes of x and of the four others
DTYPES = {
    "float64": ("float64", "float64"),
    "float32": ("float32", "float32"),
    "float16 with float32": ("float16", "float32"),
    "bfloat16 with float32": ("bfloat16", "float32"),
    "float32 with float64": ("float32", "float64"),
}
MOMENTS = [  # shape of x, axes, keepdims
    ((5, 3), [0], False),
    (NHWC, [0, 1, 2], False),
    (NCHW, [0, 2, 3], True),
    (NCHW, [-1, -2], False),
    ((5, 3), 1, True),
    ((5, 3), None, False),
    ((5, 3), [], False),
]


def numbers(tensor):
    """Nested lists; a value of 32 bits or fewer as the shortest text that reads back as itself."""
    array = np.asarray(tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor)
    flat = [float(str(v)) for v in array.ravel()]
    return {"shape": list(array.shape), "dtype": tensor.dtype.name, "values": flat}


def draw(rng, name, shapes, dtypes):
    offset = 1e4 if name == "far from zero" else 0.0
    x, mean, variance, shift, scale = shapes
    own, others = dtypes
    drawn = {
        "x": (rng.normal(size=x) + offset, own),
        "mean": (rng.normal(size=mean) + offset, others),
        "variance": (rng.uniform(0.1, 4, variance) * (name != "zero variance"), others),
        "offset": (None if shift is None else rng.normal(size=shift), others),
        "scale": (None if scale is None else rng.normal(size=scale), others),
    }
    return {key: None if v is None else tf.constant(v, dtype) for key, (v, dtype) in drawn.items()}


def normalization(rng, name, dtypes):
    *shapes, eps = NORMALIZATION[name]
    inputs = draw(rng, name, shapes, DTYPES[dtypes])
    given = {key: v for key, v in inputs.items() if v is not None}
    with tf.GradientTape() as tape:
        tape.watch(given)
        y = tf.nn.batch_normalization(**inputs, variance_epsilon=eps)
        dy = tf.constant(rng.normal(size=y.shape), y.dtype)
        loss = tf.reduce_sum(y * dy)
    gradients = tape.gradient(loss, given)
    case = {
        "name": f"{name}, {dtypes}",
        "variance_epsilon": eps,
        "y": numbers(y),
        "dy": numbers(dy),
    }
    case["inputs"] = {k: v if v is None else numbers(v) for k, v in inputs.items()}
    case["gradients"] = {k: numbers(g) for k, g in gradients.items()}
    return case


def moments(rng, shape, axes, keepdims, dtype):
    x = tf.constant(rng.normal(3, 2, size=shape), dtype)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        mean, variance = tf.nn.moments(x, axes, keepdims=keepdims)
        dmean, dvariance = (tf.constant(rng.normal(size=mean.shape), dtype) for _ in range(2))
        loss = tf.reduce_sum(mean * dmean) + tf.reduce_sum(variance * dvariance)
    tensors = {"x": x, "mean": mean, "variance": variance, "dmean": dmean, "dvariance": dvariance}
    tensors["dx"] = tape.gradient(loss, x)
    case = {
        "name": f"{shape} over {axes}, {keepdims=}, {dtype}",
        "axes": axes,
        "keepdims": keepdims,
    }
    return case | {key: numbers(tensor) for key, tensor in tensors.items()}


def main():
    rng = np.random.default_rng(2015)
    narrow = ("features", "channels first")  # the mixed dtypes are about dtype, not about shape
    normalizations = [
        normalization(rng, name, dtypes)
        for name in NORMALIZATION
        for dtypes in DTYPES
        if "with" not in dtypes or name in narrow
    ]
    all_moments = [
        moments(rng, *case, dtype)
        for case in MOMENTS
        for dtype in ("float64", "float32", "float16")
    ]
    written = {
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "batch_normalization": normalizations,
        "moments": all_moments,
    }
    # A case a line: small, and a change shows up in the diff where it happened.
    text = json.dumps(written, allow_nan=False).replace('{"name"', '\n{"name"')
    (Path(__file__).parent / "values.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
