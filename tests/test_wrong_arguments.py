"""Every argument of every public function, with values of the wrong kind: each is told by name."""

import inspect
import math
import re
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import batchnorm
from batchnorm import functional, interop

SOURCE = Path(batchnorm.__file__).parent
NOWHERE = Path(tempfile.gettempdir()) / "of no run"
NAN, INF = math.nan, math.inf
X, ONE, TWO = torch.randn(4, 3), torch.tensor(1), torch.ones(2)
WHOLE = torch.ones(4, 3, dtype=torch.int64)
FLAG = ("no", 2.5, [])  # torch takes 1, 0 and None too
SWITCH = (*FLAG, 1, None)
NUMBER = ("0.1", True, NAN, None, [1])
NAME = ("nope", True, 3)
COUNT = ("2", True, 1.5, 0, -1)
TENSOR = ("x", [1.0], 3, True)
CHANNELS = (*TENSOR, TWO, torch.ones(3, dtype=torch.int64), torch.ones(3, device="meta"))
MASK = (*TENSOR, TWO, WHOLE[:, 0])
MODEL = (None, "model", nn.BatchNorm1d, [nn.BatchNorm1d(2)])
EXAMPLE = ("x", 3, True, torch.ones(4, 5))
FUNCTION = ("x", 3, True)
GROUP = ("nope", True, [0, 1])
ACTIVATION = ("rel", True, nn.ReLU, nn.Softmax(1), ["relu"])
DOMAIN = ("x", True, 1.0, 2, -1, torch.tensor(0.5), TWO, torch.tensor([0, 1, 2, 0]))

LAYER = {
    "num_features": ("4", True, 2.0, -1, None, [4]),
    "eps": (*NUMBER, INF),
    "momentum": ("0.1", True, False, NAN, 2.0, -1.0, INF, [1]),
    "affine": FLAG,
    "track_running_stats": FLAG,
    "device": ("nowhere", True, 1.5, ["cpu"]),
    "dtype": (torch.int32, torch.bool, torch.complex64, torch.float8_e5m2, "float32", True, 32),
    "weight": FLAG,
    "bias": FLAG,
    "axis": (1.0, True, "1", 0, 7, None),
    "bias_correction": SWITCH,
    "process_group": GROUP,
    "one_value": (*NAME, None),
    "ghost_size": COUNT,
}
ACT = LAYER | {"activation": ACTIVATION, "inplace": SWITCH}
RENORM = LAYER | {
    "r_max": (*NUMBER, 0.5),
    "d_max": (*NUMBER, -0.5),
    "track_running_stats": (*FLAG, 0, False),
}
DOMAINS = LAYER | {"domains": (*COUNT, None, [1, 2]), "own_affine": FLAG}
LAZY = {name: values for name, values in LAYER.items() if name != "num_features"}
CALL = {"input": (*TENSOR, TWO, WHOLE, torch.ones(4, 5)), "mask": MASK}

MADE = {"num_features": 3}
USUAL = {"x": X, "running_mean": torch.zeros(3), "running_var": torch.ones(3), "training": True}
TF = {"x": X, "mean": 0.0, "variance": 1.0, "offset": None, "scale": None, "variance_epsilon": 1e-3}


def net(*, ours=False):
    norm = (batchnorm if ours else nn).BatchNorm1d(3)
    return nn.Sequential(nn.Linear(3, 3), norm, nn.ReLU(), nn.Linear(3, 2))


def block(manager, **usual):
    """Enters what `manager` makes, and calls the model inside."""

    def call(**given):
        given = {name: make() if callable(make) else make for name, make in usual.items()} | given
        with getattr(batchnorm, manager)(**given):
            given["model"](X)

    return call


def with_model(verb, **usual):
    return lambda **given: getattr(batchnorm, verb)(**({"model": net(), **usual} | given))


def layers(kind, **usual):
    return {
        f"{kind}{rank}d": lambda rank=rank, **given: getattr(batchnorm, f"{kind}{rank}d")(
            **(usual | given)
        )
        for rank in (1, 2, 3)
    }


def forward(kind, usual=None, **arguments):
    def call(**given):
        layer = getattr(batchnorm, kind)(**(MADE if usual is None else usual))
        return layer(**({"input": X, **arguments} | given))

    return call


FORWARD = {
    "BatchNorm1d.forward": (forward("BatchNorm1d"), CALL),
    "BatchNormAct1d.forward": (forward("BatchNormAct1d"), CALL | {"residual": (*TENSOR, TWO)}),
    "BatchRenorm1d.forward": (forward("BatchRenorm1d"), CALL),
    "LazyBatchNorm1d.forward": (forward("LazyBatchNorm1d", {}), CALL | {"input": (*TENSOR, TWO)}),
    "DomainBatchNorm1d.forward": (
        forward("DomainBatchNorm1d", MADE | {"domains": 2}, domain=0),
        CALL | {"domain": (*DOMAIN, None)},
    ),
}
CALLS = {
    **{name: (make, LAYER) for name, make in layers("BatchNorm", **MADE).items()},
    **{name: (make, ACT) for name, make in layers("BatchNormAct", **MADE).items()},
    **{name: (make, RENORM) for name, make in layers("BatchRenorm", **MADE).items()},
    **{name: (make, LAZY) for name, make in layers("LazyBatchNorm").items()},
    **{
        name: (make, DOMAINS) for name, make in layers("DomainBatchNorm", domains=2, **MADE).items()
    },
    "functional.batch_norm": (
        lambda **given: functional.batch_norm(**(USUAL | given)),
        {
            "x": (*TENSOR, None, TWO, WHOLE, X.to_sparse()),
            **dict.fromkeys(("running_mean", "running_var", "weight", "bias"), CHANNELS),
            "training": SWITCH,
            "momentum": LAYER["momentum"],
            "eps": (*NUMBER, INF, 0, -1.0),
            "activation": ACTIVATION,
            "residual": (*TENSOR, TWO, WHOLE),
            "mask": MASK,
            "axis": (*LAYER["axis"], 2),
            "backend": (*NAME, ["numba"]),
            **dict.fromkeys(("num_batches_tracked", "skipped"), (*TENSOR, TWO, torch.tensor(1.0))),
            "inplace": SWITCH,
            "update": (*FLAG, 1),
            "bias_correction": SWITCH,
            "one_value": LAYER["one_value"],
            "ghost_size": COUNT,
            "renorm": (3, True, (1,), ("3", "5"), (True, True), (0.5, 1), (3, -1), (NAN, 1)),
            "process_group": GROUP,
            "pool": (*TENSOR, torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 2).double()),
        },
    ),
    "keep_freed_memory": (batchnorm.keep_freed_memory, {"keep": SWITCH}),
    "warmup": (
        batchnorm.warmup,
        {
            "dtypes": (3, None, True, torch.float32, "float32", ["float32"], [torch.int32]),
            "everything": SWITCH,
        },
    ),
    "backends": (
        lambda **given: batchnorm.backends(**({"x": X} | given)),
        {
            "x": (*TENSOR, TWO, WHOLE),
            "activation": ACTIVATION,
            "residual": (*TENSOR, TWO),
            "mask": MASK,
        },
    ),
    "in_domain": (
        block("in_domain", model=lambda: batchnorm.DomainBatchNorm1d(3, 2), domain=0),
        {"model": MODEL, "domain": (*DOMAIN, None)},
    ),
    "masked": (
        block("masked", model=lambda: net(ours=True), mask=torch.ones(4)),
        {"model": MODEL, "mask": MASK, "resize": ("Nearest", True, False, 3)},
    ),
    "pooled": (block("pooled", model=lambda: net(ours=True)), {"model": MODEL}),
    "switches": (
        block("switches", model=lambda: net(ours=True)),
        {"model": MODEL, "statistics": NAME, "update": (*FLAG, 1)},
    ),
    "snapshot": (batchnorm.snapshot, {"model": MODEL}),
    "lengths_mask": (
        lambda **given: batchnorm.lengths_mask(**({"lengths": torch.tensor([2])} | given)),
        {
            "lengths": (*TENSOR, ONE, torch.ones(1), torch.tensor([-1]), torch.tensor([True])),
            "longest": ("4", True, 1.5, -1, 1),
        },
    ),
    "adopt": (
        with_model("adopt"),
        {
            "model": MODEL,
            "example": EXAMPLE,
            **{name: LAYER[name] for name in ("bias_correction", "one_value", "ghost_size")},
            "process_group": GROUP,
            **dict.fromkeys(("eps", "momentum", "affine", "dtype", "device", "axis"), ("x", 1)),
        },
    ),
    "insert": (
        with_model("insert"),
        {"model": MODEL, "placement": (*NAME, None, ["before"]), "example": EXAMPLE},
    ),
    "remove": (with_model("remove"), {"model": MODEL, "example": EXAMPLE}),
    "recalibrate": (
        with_model("recalibrate", batches=[X]),
        {
            "model": MODEL,
            "batches": ("x", 3, None, [1], X),
            "examples": (*COUNT, [1]),
            "prior": (*NUMBER, -1, INF),
            "layer_by_layer": SWITCH,
            "forward": FUNCTION,
        },
    ),
    "record": (
        with_model("record"),
        {
            "model": MODEL,
            **dict.fromkeys(("every", "bins"), (*COUNT, None)),
            "layers": ("nope", 3, True, [3], [], nn.Conv2d),
            "percentiles": ("15", 5, None, [101], [NAN], [True], ["15"]),
            "optimizer": (*FUNCTION, torch.optim.SGD),
            "writer": FUNCTION,
        },
    ),
    "study": (
        lambda **given: batchnorm.study(**({"names": "speed", "out": NOWHERE} | given)),
        {
            "names": ("sped", 3, True, [3]),
            "model": ("x", 3, True, net),
            "data": ("x", 3, True, X),
            "scale": (*NAME, None),
            "seed": ("x", 1.5, True, -1, None),
            "out": (3, True, None, ["x"]),
            "jobs": COUNT,
            "executor": FUNCTION,
            "fresh": SWITCH,
            "on_progress": FUNCTION,
        },
    ),
    "interop.batch_normalization": (
        lambda **given: interop.batch_normalization(**(TF | given)),
        {
            "x": (*TENSOR, None, WHOLE),
            **dict.fromkeys(("mean", "variance"), ("x", [1.0], True, None, TWO, WHOLE)),
            **dict.fromkeys(("offset", "scale"), ("x", [1.0], True, TWO, WHOLE)),
            "variance_epsilon": (*NUMBER, -1.0),
        },
    ),
    "interop.moments": (
        lambda **given: interop.moments(**({"x": X, "axes": [0]} | given)),
        {
            "x": (*TENSOR, None, WHOLE),
            "axes": ("x", True, 2, 1.5, [True], [0, 0], ["0"]),
            "keepdims": (*FLAG, None),
        },
    ),
    **FORWARD,
}
# A layer's input is the function's x, and of several things one is named.
ALIAS = {"input": "input|x|running_mean", "names": "study|names", "batches": "batch"}
ALIAS |= {"layers": "layers|no layer"}
EXPECTED = "expect|takes|must be|possible:|not of the form|it has|its layers|give (what|its)"
RESULTS = {"Changes", "Run", "Snapshot"}  # which functions return, and nobody makes
WITHOUT_EFFECT = {"name", "shift"}  # TensorFlow's


EACH = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, (_, arguments) in CALLS.items()
    for argument in arguments
]


@pytest.mark.parametrize(("name", "argument"), EACH)
def test_a_wrong_value_is_told_by_name_with_what_was_expected(name, argument):
    call, arguments = CALLS[name]
    for value in arguments[argument]:
        with pytest.raises((TypeError, ValueError)) as raised:
            call(**{argument: value})
        told = str(raised.value)
        assert SOURCE in raised.traceback[-1].path.parents, f"{value!r}: raw, {told}"
        assert re.search(ALIAS.get(argument, argument), told), f"{value!r}: {told}"
        assert re.search(EXPECTED, told), f"{value!r}: {told}"


def parameters(function):
    """The names that it takes, through ``**own`` and ``**options`` too."""
    return {
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    } - {"self"}


def test_no_argument_is_left_out():
    public = {
        name: value
        for module, path in ((batchnorm, ""), (functional, "functional."), (interop, "interop."))
        for name, value in (
            (path + name, value)
            for name, value in vars(module).items()
            if callable(value) and name[0] != "_" and value.__module__.startswith("batchnorm")
        )
        if name not in RESULTS
    }
    public |= {name: getattr(batchnorm, name.split(".")[0]).forward for name in FORWARD}
    assert public.keys() == CALLS.keys()
    for name, function in public.items():
        missing = parameters(function) - CALLS[name][1].keys() - WITHOUT_EFFECT
        assert not missing, f"{name} has {missing}, which no test gives a wrong value"


ATTRIBUTES = {
    **{name: LAYER[name] for name in ("eps", "momentum", "affine", "track_running_stats")},
    **dict.fromkeys(("update", "bias_correction", "inplace"), SWITCH),
    "statistics": NAME,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_wrong_attribute_is_told_when_it_is_set(name):
    layer = batchnorm.BatchNormAct1d(3, "elu")
    before = getattr(layer, name)
    for value in ATTRIBUTES[name]:
        with pytest.raises(ValueError, match=f"^{name}=.* (expected|must be)"):
            setattr(layer, name, value)
    assert getattr(layer, name) is before


def test_what_torch_takes_in_good_sense_is_taken():
    for kind in (batchnorm.BatchNorm1d, nn.BatchNorm1d):
        for off in (False, 0, None):
            layer = kind(3, affine=off, track_running_stats=off)
            assert layer.weight is None
            assert layer.running_mean is None
        assert kind(3, affine=1, track_running_stats=1, bias=None).bias is None
        assert kind(3, momentum=1).momentum == kind(3, momentum=1.0).momentum
        assert kind(3, dtype=float).weight.dtype == torch.float64
        assert kind(3, device=torch.device("meta")).weight.is_meta
    lazy = batchnorm.LazyBatchNorm1d(dtype=float)
    lazy(X.double())
    assert lazy.running_mean.dtype == torch.float64


def test_adopt_names_what_torch_took_and_ours_does_not():
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=2.0), nn.BatchNorm1d(3))
    changes = batchnorm.adopt(model)
    assert [path for path, _ in changes.changed] == ["1"]
    ((path, reason),) = changes.skipped
    assert path == "0"
    assert "momentum=2.0; expected None or the share of the new batch" in reason


def test_backends_take_a_mask_as_batch_norm_does():
    x = torch.randn(2, 3, 4, 4)
    for mask in (torch.ones(2), torch.ones(2, 4, 4, dtype=torch.bool)):
        assert batchnorm.backends(x, mask=mask).rows[1][1:] == (
            False,
            "torch's kernel has no mask",
        )
