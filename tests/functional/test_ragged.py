"""Nested tensors equal the same positions put together in one batch."""

import pytest
import torch

from batchnorm.functional import batch_norm

PARTS = [torch.randn(n, 3, dtype=torch.float64) for n in (4, 1, 7)]
DATA = torch.cat(PARTS)


def nested(parts=PARTS, layout=torch.jagged):
    return torch.nested.as_nested_tensor([p.clone() for p in parts], layout=layout)


def positions(y, axis=-1):
    return torch.cat([part.movedim(axis, -1).flatten(0, -2) for part in y.unbind()])


def with_a_hole():
    padded = torch.stack([torch.nn.functional.pad(p, (0, 0, 0, 9 - len(p))) for p in PARTS])
    starts, lengths = torch.zeros(3, dtype=torch.long), torch.tensor([len(p) for p in PARTS])
    padded[0, 5:] = torch.nan
    return torch.nested.narrow(padded, 1, starts, lengths, layout=torch.jagged)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (nested, -1),
        (nested, 2),
        (lambda: nested().transpose(1, 2), 1),
        (lambda: nested(layout=torch.strided), -1),
        (lambda: nested([p.T for p in PARTS], torch.strided), 1),
        (with_a_hole, -1),
    ],
    ids=["jagged", "axis 2", "channels first", "strided", "strided, channels first", "holes"],
)
@pytest.mark.parametrize("training", [True, False])
def test_every_position_is_one_value_of_one_batch(x, axis, training):
    running = [torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    kept = [t.clone() for t in running]
    options = {"training": training, "activation": "relu"}
    x = x()
    y = batch_norm(x, *running, axis=axis, **options)
    assert y.is_nested
    assert y.layout == x.layout
    expected = batch_norm(DATA, *kept, **options)
    torch.testing.assert_close(positions(y, axis if axis < 0 else axis - 1), expected)
    torch.testing.assert_close(running, kept)
    assert [p.shape for p in y.unbind()] == [p.shape for p in x.unbind()]


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_reach_each_example_and_the_residual(transposed):
    parts = [p.clone().requires_grad_() for p in PARTS]
    others = [torch.randn_like(p).requires_grad_() for p in PARTS]
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    x, r = (torch.nested.as_nested_tensor(t, layout=torch.jagged) for t in (parts, others))
    # as_nested_tensor gives each its own ragged size; the examples are as long all the same
    axis = 1 if transposed else -1
    if transposed:
        x, r = x.transpose(1, 2), r.transpose(1, 2)
    y = batch_norm(x, weight=weight, training=True, residual=r, activation="silu", axis=axis)
    values = torch.cat([p.T if transposed else p for p in y.unbind()])
    cotangent = torch.randn_like(values)
    got = torch.autograd.grad(values, [*parts, *others, weight], cotangent)
    rows = batch_norm(
        torch.cat(parts),
        weight=weight,
        training=True,
        residual=torch.cat(others),
        activation="silu",
    )
    expected = torch.autograd.grad(rows, [*parts, *others, weight], cotangent)
    torch.testing.assert_close(got, expected)


def test_gradients_of_nested_examples_equal_finite_differences():
    lengths = torch.tensor([0, 2, 3, 6])

    def loss(values, weight):
        x = torch.nested.nested_tensor_from_jagged(values, lengths)
        return batch_norm(x, weight=weight, training=True, axis=-1).values()

    values = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (values, weight))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_images_of_different_sizes():
    images = [torch.randn(3, 4, 5), torch.randn(3, 2, 7)]
    y = batch_norm(torch.nested.as_nested_tensor(images), training=True)
    rows = torch.cat([image.flatten(1) for image in images], 1).T
    torch.testing.assert_close(positions(y, 0), batch_norm(rows, training=True))


BACKWARDS = PARTS[::-1]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("parts", "layout", "options", "message"),
    [
        (PARTS, "jagged", {}, "axis=1 is the ragged axis of x.*such as axis=-1"),
        (PARTS, "jagged", {"axis": 3}, "axis=3 is no channel axis of a nested x of 3 dim.*1 to 2"),
        (PARTS, "jagged", {"axis": 0}, r"axis=0 is no channel axis.*\(axis 0 is the batch\)"),
        (PARTS, "jagged", {"mask": torch.ones(3) > 0}, r"mask of shape \(3,\) with a nested x"),
        (PARTS, "jagged", {"residual": DATA}, r"residual has shape \(12, 3\) and x is nested"),
        (PARTS, "jagged", {"axis": -1, "residual": BACKWARDS}, "residual's examples differ from"),
        (PARTS, "strided", {"axis": -1, "residual": BACKWARDS}, "residual's.* those of x in shape"),
        (PARTS, "strided", {}, r"x has \[1, 4, 7\] channels on axis 1, from example to example"),
        ([torch.randn(1, 3)], "jagged", {"axis": -1}, "Expected more than 1 value per channel"),
    ],
)
def test_what_does_not_fit_is_named(parts, layout, options, message):
    layout = getattr(torch, layout)
    if isinstance(options.get("residual"), list):
        options = options | {"residual": nested(options["residual"], layout)}
    with pytest.raises(ValueError, match=message):
        batch_norm(nested(parts, layout), training=True, **options)
