"""Options for small batches in layers, batch renormalization, domains."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import batchnorm
from batchnorm.functional import batch_norm
from batchnorm.layers import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNormAct2d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    DomainBatchNorm1d,
    DomainBatchNorm2d,
    DomainBatchNorm3d,
    LazyBatchNorm1d,
    in_domain,
)


def state(module):
    return [*(p.grad for p in module.parameters()), *(b.clone() for b in module.buffers())]


def test_options_reach_the_function():
    x = torch.randn(9, 3, 2, 2)
    for layer in (BatchNorm2d(3, ghost_size=4), BatchNormAct2d(3, "identity", ghost_size=4)):
        parts = torch.cat([BatchNorm2d(3)(p) for p in x.split(4)])
        torch.testing.assert_close(layer(x), parts)
        assert layer.num_batches_tracked == 3
        assert "ghost_size=4" in repr(layer)
    layer = BatchNorm1d(3, one_value="running")
    layer(torch.randn(4, 3))
    before = state(layer)
    y = layer(x[:1, :, 0, 0])
    torch.testing.assert_close(y, copy.deepcopy(layer).eval()(x[:1, :, 0, 0]))
    assert all(a is b or torch.equal(a, b) for a, b in zip(before, state(layer), strict=True))
    assert torch.equal(BatchNorm1d(3, one_value="beta")(x[:1, :, 0, 0]), torch.zeros(1, 3))
    lazy = LazyBatchNorm1d(ghost_size=2)
    lazy(torch.randn(4, 3))
    assert lazy.num_batches_tracked == 2


def test_bad_options_are_told_at_once():
    with pytest.raises(ValueError, match=r"one_value='none'; expected one of raise, running, beta"):
        BatchNorm1d(3, one_value="none")
    for size in (-1, 2.0, True):
        with pytest.raises(ValueError, match=rf"ghost_size={size}; expected None or how many exam"):
            BatchNormAct2d(3, ghost_size=size)
    with pytest.raises(ValueError, match=r"r_max=0.1, d_max=5.0; batch renormalization expects"):
        BatchRenorm1d(3, r_max=0.1)
    with pytest.raises(ValueError, match=r"track_running_stats=False; batch renormalization exp"):
        BatchRenorm1d(3, track_running_stats=False)
    with pytest.raises(TypeError, match=r"SyncBatchNorm has no ghost_size=4"):
        nn.SyncBatchNorm.convert_sync_batchnorm(BatchNorm1d(3, ghost_size=4))


def test_sequences_have_no_groups_of_examples():
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    with pytest.raises(ValueError, match=r"ghost_size=2 with a PackedSequence.*padded sequence"):
        BatchNorm1d(3, ghost_size=2)(packed)
    parts = [torch.randn(4, 3), torch.randn(2, 3)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
    with pytest.raises(ValueError, match=r"ghost_size=2 with a nested x.*to_padded_tensor"):
        BatchNorm1d(3, ghost_size=2, axis=-1)(nested)


RENORM = [(BatchRenorm1d, (6, 3)), (BatchRenorm2d, (6, 3, 2, 2)), (BatchRenorm3d, (6, 3, 1, 2, 2))]


@pytest.mark.parametrize(("kind", "shape"), RENORM)
def test_renorm_layers_follow_their_limits(kind, shape):
    layer, plain = kind(3, r_max=2.0, d_max=0.5), kind(3, r_max=1.0, d_max=0.0)
    assert not isinstance(layer, nn.modules.batchnorm._BatchNorm)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer))[0] is layer
    x = 3 * torch.randn(shape) + 2
    torch.testing.assert_close(plain(x), batch_norm(x, training=True))
    mean, var = torch.zeros(3), torch.ones(3)
    y = batch_norm(x, mean, var, training=True, renorm=(2.0, 0.5))
    torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.running_mean, mean)
    layer.r_max = layer.d_max = 1e6
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    twin = pickle.loads(pickle.dumps(layer))
    assert (twin.r_max, twin.d_max) == (1e6, 1e6)
    assert torch.equal(twin(x), layer(x))
    assert layer.state_dict().keys() == nn.BatchNorm1d(3).state_dict().keys()
    assert "r_max=1000000.0" in repr(layer)


@pytest.mark.parametrize("reentrant", [True, False])
def test_renorm_layers_in_a_checkpoint(reentrant):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), BatchRenorm1d(4), nn.ReLU(), BatchRenorm1d(4))
        batches = [torch.randn(5, 3, requires_grad=True) for _ in range(3)]
        total = 0.0
        for x in batches:
            y = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
            total = total + y.square().sum() * y.mean()
        total.backward()
        results.append([*(x.grad for x in batches), *state(model)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("reentrant", [True, False])
def test_running_statistics_that_normalize_and_move_in_a_checkpoint(reentrant):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), BatchNorm1d(4), nn.ReLU(), BatchNorm1d(4))
        model[1].statistics = model[3].statistics = "running"
        batches = [torch.randn(5, 3, requires_grad=True) for _ in range(3)]
        total = 0.0
        for x in batches:
            y = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
            total = total + y.square().sum() * y.mean()
        total.backward()
        results.append([*(x.grad for x in batches), *state(model)])
        assert model[1].num_batches_tracked == 3
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


DOMAINS = [
    (DomainBatchNorm1d, (8, 3)),
    (DomainBatchNorm1d, (8, 3, 5)),
    (DomainBatchNorm2d, (8, 3, 2, 2)),
    (DomainBatchNorm3d, (8, 3, 1, 2, 2)),
]
WHICH = torch.tensor([0, 2, 0, 2, 2, 0, 0, 2])


@pytest.mark.parametrize(("kind", "shape"), DOMAINS)
@pytest.mark.parametrize("own", [False, True])
def test_each_domain_has_its_own_statistics(kind, shape, own):
    layer = kind(3, domains=3, own_affine=own, dtype=torch.double)
    for p in layer.parameters():
        nn.init.normal_(p)
    assert len(list(layer.parameters())) == (6 if own else 2)
    apart = copy.deepcopy(layer)
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    y = layer(x, WHICH)
    right = torch.empty_like(x)
    for d in (0, 2):
        right = right.index_put((d == WHICH,), apart(x[d == WHICH], d))
    torch.testing.assert_close(y, right)
    for a, b in zip(layer.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert [n.num_batches_tracked.item() for n in layer.domains] == [1, 0, 1]
    wanted = [p for p in (x, *layer.parameters()) if p is x or not own]
    ours = torch.autograd.grad(y.pow(3).sum(), wanted)
    wanted = [p for p in (x, *apart.parameters()) if p is x or not own]
    torch.testing.assert_close(ours, torch.autograd.grad(right.pow(3).sum(), wanted))
    layer.eval(), apart.eval()
    right = torch.stack([apart(x[i : i + 1], int(d))[0] for i, d in enumerate(WHICH)])
    torch.testing.assert_close(layer(x, WHICH), right)


def test_first_and_second_derivatives_by_example():
    layer = DomainBatchNorm1d(2, domains=3, dtype=torch.double)
    x = torch.randn(8, 2, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, dtype=torch.double, requires_grad=True)

    def f(x, weight):
        arguments = {"weight": weight, "bias": weight * 2}
        return torch.func.functional_call(layer, arguments, (x, WHICH))

    assert torch.autograd.gradcheck(f, (x, weight))
    assert torch.autograd.gradgradcheck(f, (x, weight))


@pytest.mark.parametrize("own_affine", [False, True])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, BatchNorm2d])
def test_domains_start_from_a_trained_layer(kind, own_affine):
    """As docs/layers.md says."""
    trained = kind(3)
    model, x = nn.Sequential(nn.Conv2d(3, 3, 1), trained), torch.randn(6, 3, 4, 4)
    with torch.no_grad():
        trained.weight.uniform_(0.5, 2)
        trained.bias.uniform_(-1, 1)
    model.train()(x + 2)
    expected = model.eval()(x)
    layer = batchnorm.DomainBatchNorm2d(
        trained.num_features,
        2,
        eps=trained.eps,
        momentum=trained.momentum,
        own_affine=own_affine,
    )
    state = trained.state_dict()
    if not own_affine:
        layer.load_state_dict({name: state.pop(name) for name in ("weight", "bias")}, strict=False)
    for norm in layer.domains:
        norm.load_state_dict(state)
    model.set_submodule("1", layer)
    model.eval()
    for domain in (0, 1, torch.tensor([0, 1, 1, 0, 1, 0])):
        with in_domain(model, domain):
            torch.testing.assert_close(model(x), expected)
    assert [n.num_batches_tracked.item() for n in layer.domains] == [1, 1]


def test_domains_and_masks_together():
    layer, apart = DomainBatchNorm1d(3, domains=3), DomainBatchNorm1d(3, domains=3)
    x = torch.randn(8, 3, 4)
    for mask in (torch.rand(8, 4) > 0.3, torch.rand(8, 4)):
        y = layer(x, WHICH, mask=mask)
        for d in (0, 2):
            some = d == WHICH
            torch.testing.assert_close(y[some], apart(x[some], d, mask=mask[some]))
    mask = torch.arange(8) < 6
    with batchnorm.masked(layer, mask):
        assert layer(x, WHICH)[6:].count_nonzero() == 0
        assert layer(x, WHICH)[:6].count_nonzero() > 0


def test_a_block_sets_the_domain_of_a_whole_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), DomainBatchNorm2d(4, domains=2), nn.ReLU())
    x = torch.randn(5, 3, 2, 2)
    with in_domain(model, 1):
        y = model(x)
    torch.testing.assert_close(y, model[2](model[1](model[0](x), 1)))
    assert model[1].domain is None
    with pytest.raises(ValueError, match=r"no domain was given; expected one of 0 to 1.*in_domain"):
        model(x)
    assert [n.num_batches_tracked.item() for n in model[1].domains] == [0, 2]


def test_the_blocks_for_all_batch_norms_reach_the_domains():
    layer, x = DomainBatchNorm1d(3, domains=2), torch.randn(6, 3)
    with batchnorm.switches(layer, update=False):
        layer(x, 0)
    assert layer.domains[0].num_batches_tracked == 0
    before = batchnorm.snapshot(layer)
    with batchnorm.pooled(layer):
        layer(x, 0), layer(x, 0)
    assert layer.domains[0].num_batches_tracked == 1
    before.restore()
    assert layer.domains[0].running_mean.count_nonzero() == 0


def test_compiles_as_one_graph_though_which_domains_occur_is_not_known():
    results = []
    x = torch.randn(8, 3)
    for compiled in (False, True):
        layer = DomainBatchNorm1d(3, domains=3)
        run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        results.append([run(x, WHICH), *layer.buffers()])
    for ours, right in zip(*results, strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (3, r"domain=3; expected an integer from 0 to 2, or a tensor of one for each example"),
        (-1, r"domain=-1; expected an integer from 0 to 2"),
        (1.0, r"domain=1.0; expected an integer from 0 to 2"),
        (True, r"domain=True; expected an integer from 0 to 2"),
        (torch.tensor([0, 1, 2, 3]), r"domain=3; expected an integer from 0 to 2"),
        (torch.tensor([True] * 4), r"domain is torch.bool of shape \(4,\); expected an integer"),
        (torch.tensor([0, 1]), r"torch.int64 of shape \(2,\); expected an integer, or.*\(4,\)"),
        (torch.ones(4), r"domain is torch.float32 of shape \(4,\); expected an integer"),
        (None, r"no domain was given"),
    ],
)
def test_what_a_bad_domain_gets(domain, message):
    with pytest.raises(ValueError, match=message):
        DomainBatchNorm1d(3, domains=3)(torch.randn(4, 3), domain)


def test_bad_numbers_of_domains_and_models_without():
    with pytest.raises(ValueError, match=r"domains=0; expected how many there are, 1 or more"):
        DomainBatchNorm1d(3, domains=0)
    for domains in (2.0, True, "2"):
        with pytest.raises(ValueError, match=rf"domains={domains!r}; expected how many there are"):
            DomainBatchNorm1d(3, domains=domains)
    model = nn.Sequential(DomainBatchNorm1d(3, domains=2))
    for domain in (2, 0.0, None):
        with pytest.raises(ValueError, match=rf"domain={domain!r}; expected an integer from 0 to"):
            in_domain(model, domain).__enter__()
    with pytest.raises(ValueError, match=r"Linear has no batch norm with domains; expected"):
        in_domain(nn.Linear(2, 2), 0).__enter__()


def test_a_domain_for_each_example_needs_examples_in_a_tensor():
    packed = nn.utils.rnn.pack_sequence([torch.randn(2, 3), torch.randn(1, 3)])
    layer = DomainBatchNorm1d(3, domains=2)
    assert layer(packed, 1).data.shape == (3, 3)
    with pytest.raises(TypeError, match=r"domain is a tensor and the input a PackedSequence; exp"):
        layer(packed, torch.tensor([0, 1]))


def test_what_is_rare_is_looked_at_when_it_is_set():
    layer = BatchNorm1d(3)
    rare = {
        "ghost_size": 2,
        "one_value": "beta",
        "pool": torch.zeros(3, 3),
        "process_group": "world",
    }
    for name, value in rare.items():
        before = getattr(layer, name)
        assert layer.plain
        setattr(layer, name, value)
        assert not layer.plain
        assert copy.deepcopy(layer).plain == (name == "pool")  # no copy is inside its block
        setattr(layer, name, before)
    assert layer.plain
    assert not BatchRenorm1d(3).plain


@pytest.mark.parametrize("own", [False, True])
def test_what_each_domain_has_of_its_own_is_told_where_it_is(own):
    layer = batchnorm.DomainBatchNorm2d(3, domains=2, own_affine=own)
    there = {"running_mean", "running_var", "num_batches_tracked", *(("weight", "bias") * own)}
    assert {name for name in layer.state_dict() if "0" in name} == {f"domains.0.{n}" for n in there}
    for name in (*there, "momentum", "statistics", "num_features", "reset_running_stats"):
        kept = rf", in the state dict domains\.0\.{name}$" if name in there else ""
        told = rf"DomainBatchNorm2d has no {name} of its own, .* layer\.domains\[0\]\.{name} is"
        with pytest.raises(AttributeError, match=rf"{told} that of the first{kept}"):
            getattr(layer, name)
        assert getattr(layer.domains[0], name) is not None
    assert (layer.weight is not None) if not own else not hasattr(layer, "weight")
    with pytest.raises(
        AttributeError, match=r"^'DomainBatchNorm2d' object has no attribute 'mean'"
    ):
        _ = layer.mean


def test_what_would_have_no_effect_on_a_layer_of_domains_cannot_be_set():
    layer = batchnorm.DomainBatchNorm1d(3, domains=2)
    for name, value in (("update", False), ("statistics", "running")):
        told = rf"no {name} of its own.*batchnorm\.switches\(layer, {name}=\.\.\.\) sets it for all"
        with pytest.raises(AttributeError, match=told):
            setattr(layer, name, value)
    for name, value in (("momentum", 0.5), ("running_mean", torch.ones(3)), ("axis", -1)):
        with pytest.raises(AttributeError, match=rf"layer\.domains\[0\]\.{name} is that of the"):
            setattr(layer, name, value)
    layer.weight = torch.nn.Parameter(torch.full((3,), 2.0))
    layer.train().domain = 1
    torch.testing.assert_close(layer(torch.randn(40, 3)).var(0, correction=0).sqrt(), layer.weight)
