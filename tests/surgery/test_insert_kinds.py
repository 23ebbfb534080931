"""Each kind of layer and of neighborhood: what is done, or the reason why nothing is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from batchnorm.surgery import insert


class Net(nn.Module):
    """Layers by name, and a forward given as a function."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.steps = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.steps(self, x)


def linear(**options):
    return nn.Linear(4, 4, **options)


def two(forward, **layers):
    return Net(forward, **({"a": linear(), "b": linear()} | layers))


def reason(changes, path="a"):
    assert path not in dict(changes.changed)
    return dict(changes.skipped)[path]


@pytest.mark.parametrize(
    "activation",
    [
        F.relu,
        torch.relu,
        torch.relu_,
        lambda z: z.sigmoid(),
        torch.tanh,
        F.gelu,
        F.silu,
        F.elu,
        F.softplus,
        F.hardswish,
        lambda z: F.relu(z, inplace=True),
        lambda z: z.clamp(min=0),
        lambda z: F.leaky_relu(z, 0.2),
        lambda z: z * torch.sigmoid(z),
        nn.PReLU(),
        nn.SiLU(inplace=True),
        nn.RReLU(),
    ],
)
@pytest.mark.parametrize("example", [None, torch.randn(3, 4)], ids=["traced", "run"])
def test_activations_in_every_form(activation, example):
    layers = {"g": activation} if isinstance(activation, nn.Module) else {}
    model = two(lambda self, x: self.b((self.g if layers else activation)(self.a(x))), **layers)
    changes = insert(model, example=example)
    assert [path for path, _ in changes.changed] == ["a"]
    changes.model(torch.randn(5, 4)).sum().backward()
    after = insert(model, "after", example)
    assert [path for path, _ in after.changed] == ["g" if layers else "b"]
    after.model(torch.randn(5, 4)).sum().backward()


@pytest.mark.parametrize(
    ("layer", "shape", "norm"),
    [
        (nn.Conv1d(2, 3, 3), (2, 2, 8), "BatchNorm1d(3)"),
        (nn.Conv3d(2, 3, 3), (2, 2, 4, 4, 4), "BatchNorm3d(3)"),
        (nn.ConvTranspose1d(2, 3, 3), (2, 2, 8), "BatchNorm1d(3)"),
        (nn.ConvTranspose2d(2, 6, 3, groups=2), (2, 2, 4, 4), "BatchNorm2d(6)"),
        (nn.ConvTranspose3d(2, 3, 3), (2, 2, 4, 4, 4), "BatchNorm3d(3)"),
        (nn.Linear(4, 3), (5, 4), "BatchNorm1d(3)"),
        (nn.Linear(4, 3), (5, 6, 4), "BatchNorm1d(3, axis=-1)"),
        (nn.Linear(4, 3), (2, 3, 2, 4), "BatchNorm2d(3, axis=-1)"),
        (nn.Linear(4, 3), (2, 3, 2, 2, 4), "BatchNorm3d(3, axis=-1)"),
        (nn.Linear(4, 3, bias=False), (5, 4), "BatchNorm1d(3)"),
    ],
)
@pytest.mark.parametrize("placement", ["before", "after"])
def test_the_right_dimension_and_axis(layer, shape, norm, placement):
    x = torch.randn(shape)
    changes = insert(nn.Sequential(layer, nn.ReLU()), placement, x)
    (path, what) = changes.changed[0]
    end = "after it, on 0" if placement == "after" else "before relu; bias dropped"
    if layer.bias is None and placement == "before":
        end = "before relu; there was no bias"
    assert (path, what) == ("1" if placement == "after" else "0", f"{norm} {end}")
    hidden = changes.model[0](x) if placement == "before" else changes.model(x)
    axes = [axis for axis in range(x.dim()) if axis != (x.dim() - 1 if "axis" in norm else 1)]
    if isinstance(layer, nn.Linear):
        axes = list(range(x.dim() - 1))
    torch.testing.assert_close(
        hidden.mean(axes),
        torch.zeros(hidden.shape[-1:] if isinstance(layer, nn.Linear) else hidden.shape[1:2]),
        atol=1e-5,
        rtol=0,
    )


def test_without_an_example_the_assumption_is_said_and_right_for_both():
    changes = insert(nn.Sequential(linear(), nn.ReLU()))
    assert changes.changed[0][1] == (
        "BatchNorm1d(4, axis=-1) before relu; bias dropped; its output assumed (N, C) or (N, L, C)"
    )
    for shape in [(5, 4), (5, 2, 4)]:
        z = changes.model[0](torch.randn(shape)).flatten(0, -2)
        torch.testing.assert_close(z.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_the_rank_is_told_from_the_calls_before():
    flat = nn.Sequential(nn.Flatten(), nn.Dropout(), linear(), nn.ReLU(), linear(), nn.ReLU())
    assert [what for _, what in insert(flat).changed] == [
        "BatchNorm1d(4) before relu; bias dropped"
    ] * 2
    tokens = two(
        lambda self, x: self.b(F.gelu(self.a(x.flatten(2).transpose(1, 2) + self.position))),
        position=nn.Parameter(torch.zeros(9, 4)),
    )
    assert "assumed" in insert(tokens).changed[0][1]  # flatten(2) keeps an unknown number of axes
    patches = Net(
        lambda self, x: self.b(F.gelu(self.a(self.patch(x).permute(0, 2, 3, 1)))),
        patch=nn.Conv2d(3, 4, 2),
        a=linear(),
        b=linear(),
    )
    assert insert(patches).changed == [("a", "BatchNorm2d(4, axis=-1) before gelu; bias dropped")]
    assert insert(patches, example=torch.randn(2, 3, 4, 4)).changed == insert(patches).changed


def test_the_rank_through_flattening_and_norms():
    row = two(lambda self, x: self.b(F.relu(self.a(x.flatten(1).unsqueeze(1)))))
    assert insert(row).changed == [("a", "BatchNorm1d(4, axis=-1) before relu; bias dropped")]
    normed = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), linear(), nn.ReLU())
    assert insert(normed).changed == [("2", "BatchNorm1d(4) before relu; bias dropped")]
    partly = nn.Sequential(nn.Flatten(2), linear(), nn.ReLU())
    assert "assumed" in insert(partly).changed[0][1]


class NormedBlock(nn.Module):
    """Called a norm, and made of layers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(linear(), nn.ReLU())

    def forward(self, x):
        return F.normalize(self.body(x))


def test_a_block_that_is_called_a_norm_is_looked_into():
    assert insert(nn.Sequential(NormedBlock())).changed[0][0] == "0.body.0"


def test_inputs_without_examples_are_refused():
    assert reason(
        insert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), example=torch.randn(1, 5, 5)), "0"
    ) == ("its output has 3 axes: there is no axis of examples")
    assert "has 1 axes" in reason(
        insert(nn.Sequential(linear(), nn.ReLU()), example=torch.randn(4)), "0"
    )


def test_an_input_with_too_many_axes_is_refused():
    changes = insert(nn.Sequential(linear(), nn.ReLU()), example=torch.randn(2, 1, 2, 1, 2, 4))
    assert reason(changes, "0") == "its output has 6 axes; batch norm takes 2 to 5"


def test_two_consumers():
    residual = two(lambda self, x: self.b(F.relu(z := self.a(x)) + z))
    for placement in ("before", "after"):
        assert reason(insert(residual, placement)) == "its output goes to relu and add"
    halved = two(lambda self, x: self.b(F.relu(z := self.a(x)) + z * 0.5))
    assert reason(insert(halved)) == "its output goes to relu and mul"  # no gate: not its own relu
    size = two(lambda self, x: self.b(F.relu(z := self.a(x)) * z.shape[0]))
    assert insert(size).changed[0][0] == "a"  # asking for the shape is no use of the value
    both = two(lambda self, x: self.b(F.relu(z := self.a(x)) + torch.tanh(z)))
    assert insert(both).changed[0][0] == "a"
    assert reason(insert(both, "after")) == "its output goes to several activations"
    aux = two(lambda self, x: (self.b(F.relu(z := self.a(x))), z))
    assert reason(insert(aux)) == "its output goes to relu and the output"


class InTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = linear(), linear()

    def forward(self, x):
        z = self.a(x)
        y = self.b(F.relu(z))
        return (y, z) if self.training else y


@pytest.mark.parametrize("mode", [True, False])
def test_a_consumer_in_training_only_is_seen_in_either_mode(mode):
    changes = insert(InTraining().train(mode), example=torch.randn(3, 4))
    assert reason(changes) == "its output goes to relu and the output"


def test_an_activation_that_ends_the_model():
    generator = nn.Sequential(linear(), nn.ReLU(), linear(), nn.Tanh(), nn.Flatten())
    changes = insert(generator)
    assert [path for path, _ in changes.changed] == ["0"]
    assert reason(changes, "2") == "not a hidden layer: tanh of its output is the model's output"
    shaped = two(lambda self, x: (y := torch.sigmoid(self.a(x))).view(y.shape))
    assert "not a hidden layer" in reason(insert(shaped))
    features = nn.Sequential(linear(), nn.ReLU())
    assert [path for path, _ in insert(features).changed] == ["0"]


def test_layers_that_a_norm_follows():
    norms = [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)]
    for norm in norms:
        model = nn.Sequential(linear(), nn.Dropout(), norm, nn.ReLU(), linear())
        text = f"already followed by a norm, 2 ({type(norm).__name__})"
        assert reason(insert(model), "0") == reason(insert(model, "after"), "0") == text
    functional = two(lambda self, x: self.b(F.relu(F.layer_norm(self.a(x), (4,)))))
    assert reason(insert(functional)) == "already followed by a norm, layer_norm"
    behind = nn.Sequential(linear(), nn.ReLU(), nn.BatchNorm1d(4), linear())
    assert (
        reason(insert(behind, "after"), "0")
        == "relu is already followed by a norm, 2 (BatchNorm1d)"
    )
    assert insert(behind, "before").changed[0][0] == "0"


def test_modules_called_more_than_once():
    again = two(lambda self, x: self.b(F.relu(self.a(F.relu(self.a(x))))))
    shared = nn.Sequential(layer := linear(), nn.ReLU(), layer, nn.ReLU())
    text = "called 2 times, and one batch norm would mix their statistics"
    assert reason(insert(again)) == reason(insert(shared), "0") == text
    assert reason(insert(again, "after")) == text


def test_a_module_under_two_names_called_once_is_replaced_under_both():
    model = two(lambda self, x: self.b(F.relu(self.a(x))))
    model.alias = model.a
    model.by_name = {"a": model.a}
    new = insert(model).model
    assert new.a is new.alias is new.by_name["a"]
    assert isinstance(new.a, nn.Sequential)


def test_tied_weights_stay_tied_and_a_shared_bias_stays():
    model = two(lambda self, x: self.b(F.relu(self.a(x))))
    model.b.weight = model.a.weight
    changes = insert(model)
    assert changes.changed[0][1].startswith("BatchNorm1d(4, axis=-1) before relu; bias dropped")
    assert changes.model.a[0].weight is changes.model.b.weight is model.a.weight
    model.b.bias = model.a.bias
    changes = insert(model)
    assert "bias kept, since b shares it" in changes.changed[0][1]
    assert changes.model.a[0].bias is changes.model.b.bias


def test_parameters_used_directly():
    model = two(lambda self, x: F.linear(self.b(F.relu(self.a(x))), self.a.weight))
    for example in (None, torch.randn(2, 4)):
        assert reason(insert(model, example=example)) == (
            "its parameters are used directly, and would get another path"
        )


def test_hooks_see_what_they_saw():
    model = two(lambda self, x: self.b(F.relu(self.a(x))))
    seen = []
    model.a.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(3, 4)
    changes = insert(model)
    assert seen == []
    assert "bias kept, since a hook sees z" in changes.changed[0][1]
    changes.model(x)
    model(x)
    assert torch.equal(seen[0], seen[1])


def test_a_backward_hook_sees_no_z():
    model = two(lambda self, x: self.b(F.relu(self.a(x))))
    seen = []
    model.a.register_full_backward_hook(lambda module, given, gradients: seen.append(gradients[0]))
    changes = insert(model)
    assert "bias dropped" in changes.changed[0][1]
    changes.model(torch.randn(3, 4, requires_grad=True)).sum().backward()
    assert seen[0].shape == (3, 4)


def test_weight_and_spectral_norm_are_left_alone():
    old = torch.nn.utils.spectral_norm(linear())
    for layer, name in [
        (parametrizations.weight_norm(linear()), "weight norm"),
        (parametrizations.spectral_norm(linear()), "spectral norm"),
        (parametrizations.orthogonal(linear()), "an orthogonal parametrization"),
        (old, "spectral norm"),
    ]:
        model = nn.Sequential(layer, nn.ReLU(), linear())
        changes = insert(model, example=torch.randn(3, 4))
        assert reason(changes, "0") == (
            f"its weight is under {name}, which batch norm would undo: remove that first"
        )
        changes.model(torch.randn(3, 4))


def test_the_first_weight_norm_is_left_alone():
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = torch.nn.utils.weight_norm(linear())
    model = nn.Sequential(layer, nn.ReLU(), linear(), nn.ReLU())
    changes = insert(model, example=torch.randn(3, 4))
    assert "under weight norm" in reason(changes, "0")
    assert changes.model[0].weight_g is model[0].weight_g
    changes.model(torch.randn(3, 4)).sum().backward()


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).transpose(-1, -2)


def test_other_parametrizations_and_pruning_go_on_inside_of_the_pair():
    for layer in (linear(), linear()):
        parametrize.register_parametrization(layer, "weight", Symmetric())
        new = insert(nn.Sequential(layer, nn.ReLU())).model
        assert torch.equal(new[0][0].weight, new[0][0].weight.T)
        assert new[0][0].parametrizations.weight.original is layer.parametrizations.weight.original
        assert new[0][0].bias is None
        new(torch.randn(3, 4)).sum().backward()
    pruned = prune.l1_unstructured(linear(), "weight", amount=0.5)
    new = insert(nn.Sequential(pruned, nn.ReLU()), example=torch.randn(3, 4)).model
    new(torch.randn(3, 4))
    assert (new[0][0].weight == 0).sum() == 8
    layer = linear()
    parametrize.register_parametrization(layer, "bias", nn.Identity())
    changes = insert(nn.Sequential(layer, nn.ReLU()))
    assert "bias kept, since it is parametrized" in changes.changed[0][1]
    changes.model(torch.randn(3, 4))


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Named(nn.Linear):
    pass


def test_subclasses():
    model = nn.Sequential(Scaled(4, 4), nn.ReLU(), Named(4, 4), nn.ReLU())
    changes = insert(model)
    assert reason(changes, "0") == "Scaled has a forward of its own, so its output may not be z"
    assert type(changes.model[2][0]) is Named
    patched = nn.Sequential(linear(), nn.ReLU())
    patched[0].forward = lambda x: x
    assert "forward of its own" in reason(insert(patched), "0")


def test_lazy_layers():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), linear(), nn.ReLU())
    for example in (None, torch.randn(3, 7)):
        changes = insert(model, example=example)
        assert reason(changes, "0") == "not initialized yet: run one batch through the model first"
        assert model[0].has_uninitialized_params()
        assert changes.changed[0][0] == "2"
    lazy = nn.Sequential(linear(), nn.ReLU(), nn.LazyLinear(2))
    assert insert(lazy, "after").changed[0][0] == "1"
    consumer = two(lambda self, x: self.b(F.relu(self.a(x))), b=nn.LazyLinear(2))
    assert "b (LazyLinear): not initialized yet" in reason(insert(consumer, "after"))


def test_scripted_parts():
    scripted = torch.jit.script(nn.Sequential(linear(), nn.ReLU()))
    model = nn.Sequential(scripted, linear(), nn.ReLU())
    model.train()
    changes = insert(model, example=torch.randn(3, 4))
    assert reason(changes, "0") == "compiled TorchScript: insert first, then compile"
    assert list(dict(changes.skipped)) == ["0"]
    assert scripted.training
    assert changes.model[0] is scripted
    changes.model(torch.randn(3, 4))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantized_layers():
    model = nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(4, 4), nn.ReLU(), linear())
    changes = insert(model)
    assert reason(changes, "0") == "quantized: insert first, then quantize"
    assert list(dict(changes.skipped)) == ["0", "2"]
    aware = nn.Sequential(
        torch.ao.nn.qat.Linear(4, 4, qconfig=torch.ao.quantization.default_qconfig), nn.ReLU()
    )
    assert "forward of its own" in reason(insert(aware), "0")


def test_complex_layers():
    model = nn.Sequential(linear(dtype=torch.complex64), nn.Tanh(), linear(dtype=torch.complex64))
    assert reason(insert(model), "0") == "its values are complex (torch.complex64)"


def test_calls_with_more_than_the_input():
    model = Net(
        lambda self, x: self.b(F.relu(self.a(x, output_size=[7, 7]))),
        a=nn.ConvTranspose2d(1, 2, 3, stride=2),
        b=nn.Conv2d(2, 1, 1),
    )
    for example in (None, torch.randn(1, 1, 3, 3)):
        assert reason(insert(model, example=example)).startswith("called with more than its input")
    by_name = two(lambda self, x: self.b(input=F.relu(self.a(input=x))))
    insert(by_name, example=torch.randn(3, 4)).model(torch.randn(3, 4))


def test_reshapes_between_layer_and_activation():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU(), nn.Linear(18, 2))
    assert insert(model).changed == [("0", "BatchNorm2d(2) before relu; bias dropped")]
    assert reason(insert(model, "after"), "0") == (
        "its output is reshaped before relu, which moves the channels"
    )
    gated = nn.Sequential(linear(), nn.GLU(), nn.Linear(2, 2))
    assert insert(gated).changed[0][0] == "0"
    assert reason(insert(gated, "after"), "0") == "glu of its output has half as many channels"


def test_layers_that_are_never_called_or_used_by_another_module():
    model = two(lambda self, x: self.b(x), attention=nn.MultiheadAttention(4, 2))
    changes = insert(model)
    assert reason(changes) == "never called in forward"
    model = two(
        lambda self, x: self.b(F.relu(self.attention(x, x, x)[0])), attention=model.attention
    )
    assert reason(insert(model), "attention.out_proj") == (
        "part of attention, and MultiheadAttention uses its parts in its own way"
    )
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    assert insert(encoder, example=torch.randn(2, 3, 4)).changed == []
    assert reason(insert(linear()), "") == "the model is this one layer: no activation follows"


def test_nested_containers_keep_every_other_path():
    model = nn.Sequential(
        nn.Sequential(linear(), nn.ReLU()),
        nn.Sequential(nn.Sequential(linear(), nn.Tanh()), linear()),
    )
    new = insert(model).model
    assert set(model.state_dict()) - set(new.state_dict()) == {
        *("0.0.weight", "0.0.bias", "1.0.0.weight", "1.0.0.bias")
    }
    assert new[1][1].weight is model[1][1].weight


class OwnSigmoid(nn.Sigmoid):
    pass


class OwnGLU(nn.GLU):
    pass


def test_activations_that_derive_from_torchs_are_what_those_are():
    model = nn.Sequential(linear(), OwnGLU(), nn.Linear(2, 3), OwnSigmoid())
    changes = insert(model)
    assert changes.changed[0][1].startswith("BatchNorm1d(4, axis=-1) before glu")
    assert reason(changes, "2") == "not a hidden layer: sigmoid of its output is the model's output"
    assert reason(insert(model, "after"), "0") == "glu of its output has half as many channels"


def test_the_rank_of_a_layer_that_takes_a_buffer_is_told():
    model = two(lambda self, x: x + self.b(F.relu(self.a(self.table))).mean((0, 1, 2)))
    model.register_buffer("table", torch.randn(1, 5, 5, 4))
    for changes in (insert(model), insert(model, example=torch.randn(3, 4))):
        assert changes.changed == [("a", "BatchNorm2d(4, axis=-1) before relu; bias dropped")]
    changes.model(torch.randn(3, 4))
    position = two(lambda self, x: self.b(F.relu(self.a(self.table + x))), table=model.table)
    assert "assumed" in insert(position).changed[0][1]  # x may have more axes than the table


class Either(nn.Module):
    """What the last layer takes is another layer's in training."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = linear(), linear(), linear()
        self.relu = nn.ReLU()

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.c(F.relu(self.b(h)) if self.training else h)


class EitherActivation(Either):
    def forward(self, x):
        if self.training:
            z = self.a(x)
            return self.relu(z) + z
        return self.relu(self.b(x))


@pytest.mark.parametrize("example", [None, torch.randn(3, 4)])
def test_after_where_another_layers_value_comes_too(example):
    changes = insert(Either(), "after", example)
    assert changes.changed == []
    assert reason(changes, "b") == "relu of its output is not all that c takes"
    changes = insert(EitherActivation(), "after", example)
    assert changes.changed == []
    assert reason(changes, "b") == "relu of its output is not all that relu gives"
