"""What is timed: the batch norms of real networks, one row of the table each."""

import math
from dataclasses import dataclass, replace

# Channels, height and width of each batch norm; ResNet-18 as it is used on 32x32 images (a 3x3 stem).
RESNET18_32 = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
RESNET50_224 = [
    (64, 112, 112),
    (64, 56, 56),
    (256, 56, 56),
    (128, 28, 28),
    (512, 28, 28),
    (256, 14, 14),
    (1024, 14, 14),
    (512, 7, 7),
    (2048, 7, 7),
]
MOBILENET3_64 = [(72, 16, 16), (24, 8, 8), (96, 4, 4)]  # some; their activation stays a module
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """One measurement, of every contender in each of its layouts.

    Attributes:
        group: the network or kind of input it comes from.
        shape: of the input, channels second.
        work: "forward", "training" (forward and backward) or "evaluation".
        dtype: "float32" or "bfloat16".
        relu: batch norm alone, or followed by ReLU.
        residual: another tensor is added before the ReLU.
    """

    group: str
    shape: tuple[int, ...]
    work: str = "training"
    dtype: str = "float32"
    relu: bool = True
    residual: bool = False

    @property
    def megabytes(self):
        """Of the input."""
        return math.prod(self.shape) * BYTES[self.dtype] / 1e6

    @property
    def passes(self):
        """Tensor-sized reads and writes that no implementation can avoid, cache aside.

        A forward pass reads x (and the residual) and writes y. A training backward pass reads dy
        and x and writes dx (and the residual's gradient). Statistics that do not fit in a cache need
        x once more; that is not counted, so the floor is below what is reachable.
        """
        forward = 2 + self.residual
        if self.work != "training":
            return forward
        return forward + 3 + 2 * self.residual

    @property
    def layouts(self):
        """The memory layouts that this rank of tensor has."""
        return ("contiguous", "channels_last") if len(self.shape) > 2 else ("contiguous",)

    def __str__(self):
        parts = ["x".join(map(str, self.shape)), self.work]
        parts += [self.dtype] if self.dtype != "float32" else []
        parts += ["+ residual"] if self.residual else []
        parts += ["+ ReLU"] if self.relu else []
        return " ".join(parts)


def cases(quick=False):
    """Every case; `quick` keeps one shape of each kind."""
    resnets = [
        Case(group, (batch, *shape))
        for batch in (8, 32)
        for group, shapes in (
            ("ResNet-18, 32x32", RESNET18_32),
            ("ResNet-50, 224x224", RESNET50_224),
        )
        for shape in shapes
    ]
    others = [
        Case("MLP", (256, 512)),
        Case("MLP", (4096, 1024)),
        Case("small", (32, 64), relu=False),
        Case("small", (256, 512), relu=False),
        *(Case("MobileNetV3, 64x64", (8, *shape), relu=False) for shape in MOBILENET3_64),
        Case("1-D", (32, 128, 512)),
        Case("3-D", (4, 32, 16, 56, 56)),
        Case("MLP", (4096, 1024), dtype="bfloat16"),
        Case("large", (32, 64, 112, 112), relu=False),
    ]
    anchor = Case("ResNet-50, 224x224", (32, 64, 56, 56))
    if quick:
        return [anchor, *others[:1]]
    deep = replace(anchor, shape=(32, 256, 14, 14))
    variants = [
        replace(base, **change)
        for base in (anchor, deep)
        for change in (
            {"work": "forward"},
            {"work": "evaluation"},
            {"relu": False},
            {"residual": True},
            {"dtype": "bfloat16"},
        )
    ]
    return resnets + others + variants


def has_target(group, work, dtype, relu, residual, **_):
    """Whether targets are set for such a case."""
    usual = work == "training" and dtype == "float32" and relu and not residual
    return group.startswith("ResNet") and usual
