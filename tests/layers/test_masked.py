"""A mask reaches every batch norm inside a model; what it leaves out might as well not be there."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct1d, lengths_mask, masked

LENGTHS = torch.tensor([9, 4, 6])


def sequences(channels=2, longest=9):
    x = torch.randn(3, channels, longest, dtype=torch.float64)
    return x.masked_fill(~lengths_mask(LENGTHS, longest)[:, None], torch.nan)


def network():
    return nn.Sequential(
        nn.Conv1d(2, 4, 1), BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 1), BatchNormAct1d(3)
    ).double()


def test_padding_that_holds_nan_changes_nothing():
    model, alone = network(), network()
    alone.load_state_dict(model.state_dict())
    x, mask = sequences(), lengths_mask(LENGTHS)
    with masked(model, mask):
        y = model(x)
    rows = torch.cat([x[n, :, :length].T for n, length in enumerate(LENGTHS)])
    expected = alone(rows[..., None])
    torch.testing.assert_close(y.movedim(1, -1)[mask], expected[..., 0])
    assert not y.movedim(1, -1)[~mask].any()
    torch.testing.assert_close(model.state_dict(), alone.state_dict())
    y.square().sum().backward()
    expected.square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        if name in ("1.weight", "1.bias", "3.weight", "4.weight", "4.bias"):
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_gradients_of_the_input_are_zero_outside():
    model = network()[1:]
    x = torch.randn(3, 4, 9, dtype=torch.float64).requires_grad_()
    mask = lengths_mask(LENGTHS)
    with masked(model, mask):
        model(x).square().sum().backward()
    inside = x.grad.movedim(1, -1)
    assert inside[mask].any()
    assert not inside[~mask].any()


def test_frequencies_equal_repeated_examples():
    x = torch.randn(4, 3, dtype=torch.float64)
    layer, twice = BatchNorm1d(3).double(), BatchNorm1d(3).double()
    often = torch.tensor([1.0, 3.0, 0.0, 2.0])
    with masked(layer, often):
        y = layer(x)
    repeated = twice(x.repeat_interleave(often.long(), 0))
    torch.testing.assert_close(y[[0, 1, 3]], repeated[[0, 1, 4]])
    torch.testing.assert_close(layer.state_dict(), twice.state_dict())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrong", [-1.0, -float("inf"), float("inf"), float("nan")])
def test_weights_that_are_no_frequencies_are_refused(training, dtype, wrong):
    layer, x = BatchNorm1d(3).train(training), torch.randn(4, 3)
    words = rf"mask has a weight of {wrong:g}; expected finite weights of 0, .*mask.clamp\(min=0\)"
    for mask in (torch.tensor([1.0, wrong, 0.0, 2.0]), torch.full((4,), wrong)):
        with pytest.raises(ValueError, match=words):
            layer(x, mask=mask.to(dtype))
        with pytest.raises(ValueError, match=words), masked(layer, mask.to(dtype)):
            layer(x)
    assert layer.num_batches_tracked == 0
    layer(x, mask=torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=dtype))


def test_a_mask_of_one_shape_alone_is_told_once():
    layer, x = BatchNorm1d(3), torch.randn(4, 3)
    words = r"expected \(4,\), one value for each example; where"
    with pytest.raises(ValueError, match=words), masked(layer, torch.ones(3)):
        layer(x)


def test_blocks_nest_and_give_back_on_every_way_out():
    layer = BatchNorm1d(2)
    x = torch.randn(4, 2)
    outer, inner = torch.arange(4) < 3, torch.arange(4) < 2
    with masked(layer, outer):
        with masked(layer, inner):
            assert layer(x).any(1).tolist() == [True, True, False, False]
        assert layer(x).any(1).tolist() == [True, True, True, False]
        with masked(layer, None):
            assert layer(x).any(1).all()
        assert layer(x, mask=inner).any(1).tolist() == [True, True, False, False]
        with pytest.raises(KeyError), masked(layer, inner):
            raise KeyError
        assert layer.ambient.mask is outer
    assert layer.ambient is None
    assert layer(x).any(1).all()


def test_positions_that_became_rows_or_were_pooled_away():
    mask = lengths_mask(torch.tensor([3, 0, 1]), 5)
    layer = BatchNorm1d(2)
    x = torch.randn(3, 5, 2)
    with masked(layer, mask):
        rows = layer(x.view(-1, 2))
        pooled = layer(x.sum(1))
    torch.testing.assert_close(rows, BatchNorm1d(2)(x.view(-1, 2), mask=mask.flatten()))
    assert pooled.any(1).tolist() == [True, False, True]


def test_strided_layers_sample_the_mask():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), BatchNorm2d(2), nn.Conv2d(2, 2, 1, stride=2), BatchNorm2d(2)
    )
    mask = torch.zeros(2, 6, 7, dtype=torch.bool)
    mask[0, :, :3] = mask[1, :4] = True
    with masked(model, mask, resize="nearest"):
        y = model(torch.randn(2, 1, 6, 7))
    assert y.shape == (2, 2, 3, 4)
    assert (y[:, 0] != 0).equal(mask[:, ::2, ::2])


def test_a_function_makes_the_mask_fit():
    layer = BatchNorm1d(2)
    seen = []

    def either(mask, positions):
        seen.append(positions)
        return mask.unflatten(1, (-1, 2)).any(-1)

    with masked(layer, lengths_mask(torch.tensor([3, 1]), 4), resize=either):
        y = layer(torch.randn(2, 2, 2))
    assert seen == [(2, 2)]
    assert (y[:, 0] != 0).tolist() == [[True, True], [True, False]]


def test_evaluation_is_masked_too_and_all_left_out_is_no_error_there():
    model = network().eval()
    with masked(model, torch.zeros(3, dtype=torch.bool)):
        assert not model(sequences()).any()


def test_compiles_under_a_mask():
    layer, eager = BatchNorm1d(3), BatchNorm1d(3)
    x, mask = torch.randn(3, 3, 9), lengths_mask(LENGTHS)
    with masked(layer, mask), masked(eager, mask):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(layer.state_dict(), eager.state_dict())


def test_all_left_out_is_defined_where_raising_would_break_a_graph():
    layer = BatchNorm1d(3)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    none = torch.zeros(4, dtype=torch.bool)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(torch.full((4, 3), torch.nan), mask=none)
    assert not y.any()
    torch.testing.assert_close(layer.state_dict(), before)


class TestErrors:
    def test_a_mask_that_leaves_nothing(self):
        with pytest.raises(ValueError, match=r"mask leaves no position of x with shape \(4, 3\)"):
            BatchNorm1d(3)(torch.randn(4, 3), mask=torch.zeros(4, dtype=torch.bool))
        with pytest.raises(ValueError, match="mask leaves no position"):
            BatchNorm1d(3)(torch.randn(4, 3), mask=torch.zeros(4))

    def test_a_mask_that_fits_no_input_names_the_layer(self):
        model = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), BatchNorm1d(4))
        message = r"mask of shape \(3, 9\) does not fit the batch norm 1, whose input has shape \(3, 4, 4\).*\(3, 4\)"
        with masked(model, lengths_mask(LENGTHS)), pytest.raises(ValueError, match=message):
            model(torch.randn(3, 2, 9))

    def test_a_function_that_does_not_make_it_fit(self):
        layer = BatchNorm1d(4)
        block = masked(layer, lengths_mask(LENGTHS), resize=lambda mask, positions: mask[:1])
        with block, pytest.raises(ValueError, match="does not fit the model"):
            layer(torch.randn(3, 4, 5))

    def test_batch_norms_that_no_mask_reaches(self):
        model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": BatchNorm1d(3)})
        with pytest.raises(ValueError, match=r"no mask reaches a \(BatchNorm1d\); expected"):
            masked(model, LENGTHS > 0).__enter__()
        with pytest.raises(ValueError, match="Linear has no batch norm that a mask could reach"):
            masked(nn.Linear(2, 2), LENGTHS > 0).__enter__()

    def test_an_instance_norm_is_no_batch_norm(self):
        layer = BatchNorm1d(3)
        model = nn.Sequential(layer, nn.InstanceNorm1d(3, track_running_stats=True))
        with masked(model, LENGTHS > 0):
            assert layer.ambient is not None
            model(torch.randn(3, 3, 4))
        with pytest.raises(ValueError, match="has no batch norm that a mask could reach"):
            masked(model[1], LENGTHS > 0).__enter__()

    def test_what_is_no_mask_is_told_before_the_block_begins(self):
        with pytest.raises(TypeError, match=r"mask is of type list, \[True\]; expected a tensor"):
            masked(network(), [True]).__enter__()
        with pytest.raises(ValueError, match=r"mask is torch.int64 of shape \(3,\); .*of lengths"):
            masked(network(), LENGTHS).__enter__()

    def test_an_unknown_way_to_resize(self):
        with pytest.raises(ValueError, match="resize='bilinear'; expected None, 'nearest'"):
            masked(network(), LENGTHS > 0, resize="bilinear").__enter__()

    def test_lengths(self):
        with pytest.raises(TypeError, match=r"lengths is torch.float32; expected integers"):
            lengths_mask(torch.ones(2))
        with pytest.raises(TypeError, match=r"lengths is of type list, \[1, 2\]; expected a tens"):
            lengths_mask([1, 2])
        with pytest.raises(ValueError, match=r"lengths has shape \(1, 3\); expected \(N,\)"):
            lengths_mask(LENGTHS[None])
        with pytest.raises(ValueError, match="lengths run from 4 to 9; expected 0 to 8"):
            lengths_mask(LENGTHS, 8)
        with pytest.raises(ValueError, match="lengths run from -1 to 2"):
            lengths_mask(torch.tensor([-1, 2]))
        assert lengths_mask(torch.tensor([], dtype=torch.long)).shape == (0, 0)


class TestPackedSequences:
    parts = tuple(torch.randn(n, 3, dtype=torch.float64) for n in (5, 2, 2))

    @pytest.mark.parametrize("axis", [1, -1])
    def test_all_values_are_one_batch(self, axis):
        layer, rows = BatchNorm1d(3, axis=axis).double(), BatchNorm1d(3).double()
        packed = pack_sequence(self.parts)
        y = layer(packed)
        torch.testing.assert_close(y.data, rows(packed.data))
        assert y.batch_sizes is packed.batch_sizes
        torch.testing.assert_close(layer.state_dict(), rows.state_dict())

    def test_with_activation_and_residual_through_a_recurrent_layer(self):
        torch.manual_seed(0)
        layer = BatchNormAct1d(3, "tanh").double()
        lstm = nn.LSTM(3, 3).double()
        packed = pack_sequence(self.parts)
        y = layer(lstm(packed)[0], packed)
        y.data.sum().backward()
        assert lstm.weight_hh_l0.grad.any()
        assert y.data.shape == packed.data.shape

    def test_what_does_not_fit_is_named(self):
        layer, packed = BatchNormAct1d(3).double(), pack_sequence(self.parts)
        with pytest.raises(ValueError, match=r"mask of shape \(3,\) with a PackedSequence"):
            layer(packed, mask=LENGTHS > 0)
        with masked(layer, LENGTHS > 0), pytest.raises(ValueError, match="with a PackedSequence"):
            layer(packed)
        with pytest.raises(TypeError, match="residual is a Tensor and the input a PackedSequence"):
            layer(packed, packed.data)


class TestScaleAndBias:
    @pytest.mark.parametrize("weight", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("kind", [BatchNorm1d, BatchNormAct1d])
    def test_each_on_or_off(self, kind, weight, bias):
        layer = kind(3, weight=weight, bias=bias)
        assert {name for name, _ in layer.named_parameters()} == {
            name for name, there in (("weight", weight), ("bias", bias)) if there
        }
        layer.reset_parameters()
        x = torch.randn(5, 3, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert ("weight=False" in repr(layer)) is not weight
        again = kind(3, weight=weight, bias=bias)
        again.load_state_dict(layer.state_dict())
        torch.testing.assert_close(again.eval()(x), layer.eval()(x))
