"""What torch's fusers, for evaluation and for quantization, make of our layers."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import batchnorm
from batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, BatchNormAct2d

with warnings.catch_warnings():  # which torch's own modules raise when they are imported
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.ao.quantization import fuse_conv_bn_relu, fuse_modules, fuse_modules_qat
    from torch.ao.quantization.quantize_fx import fuse_fx
    from torch.fx.experimental.optimization import fuse

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def trained(layer):
    """`layer` in float64 and evaluation, with a state that shows in its output."""
    for name, tensor in layer.double().state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + (name == "running_var"))
    return layer.eval()


def network(norm=BatchNorm2d):
    return nn.Sequential(nn.Conv2d(3, 4, 3), trained(norm(4)), nn.ReLU()).double().eval()


PAIRS = {
    "1d": (nn.Conv1d(3, 4, 3), BatchNorm1d(4)),
    "2d": (nn.Conv2d(3, 4, 3), BatchNorm2d(4)),
    "3d": (nn.Conv3d(3, 4, 3), BatchNorm3d(4)),
    "no bias before": (nn.Conv2d(3, 4, 3, bias=False), BatchNorm2d(4)),
    "weight=False": (nn.Conv2d(3, 4, 3), BatchNorm2d(4, weight=False)),
    "bias=False": (nn.Conv2d(3, 4, 3), BatchNorm2d(4, bias=False)),
    "affine=False": (nn.Conv2d(3, 4, 3), BatchNorm2d(4, affine=False)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), BatchNorm2d(4)),
    "linear": (nn.Linear(6, 4), BatchNorm1d(4)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_torchs_functions_for_evaluation_fuse(pair):
    before, norm = PAIRS[pair][0].double().eval(), trained(PAIRS[pair][1])
    axes = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv3d: 3}.get(type(before), 2)
    x = torch.randn(2, *((3,) if axes else ()), *[6] * max(axes, 1), dtype=torch.float64)
    if isinstance(before, nn.Linear):
        fused = fuse_linear_bn_eval(before, norm)
    else:
        fused = fuse_conv_bn_eval(before, norm, transpose=isinstance(before, nn.ConvTranspose2d))
    assert type(fused) is type(before)
    torch.testing.assert_close(fused(x), norm(before(x)))
    assert not torch.allclose(fused(x), before(x))


def test_remove_keeps_what_torchs_functions_would_drop():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    conv, norm = nn.Conv2d(3, 4, 3).double().eval(), trained(BatchNormAct2d(4))
    model = nn.Sequential(conv, norm)
    assert (fuse_conv_bn_eval(conv, norm)(x) < 0).any()  # no ReLU any more
    folded = batchnorm.remove(model).model
    assert [type(layer) for layer in folded] == [nn.Conv2d, nn.ReLU]
    torch.testing.assert_close(folded(x), model(x))
    model[1] = trained(BatchNorm2d(4))
    model[1].statistics = "batch"
    changes = batchnorm.remove(model, x)
    assert changes.error == 0
    ((path, reason),) = changes.skipped
    assert path == "1"
    assert 'its statistics are set to "batch": what it computes in evaluation' in reason


def test_eager_fusers_name_the_class_and_the_ways_out_work():
    model, x = network(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    names = ["0", "1", "2"]
    for fuser, mode in ((fuse_modules, False), (fuse_modules_qat, True)):
        with pytest.raises(AssertionError, match=r"did not find fuser method .*batchnorm\.layers"):
            fuser(model.train(mode), [names])
    model.eval()
    told = {(nn.Conv2d, BatchNorm2d, nn.ReLU): fuse_conv_bn_relu}
    config = {"additional_fuser_method_mapping": told}
    fused = [
        fuse_modules(model, [names], fuse_custom_config_dict=config),
        fuse_modules(batchnorm.remove(model).model.eval(), [["0", "2"]]),
    ]
    for one in fused:
        assert type(one[0]).__name__ == "ConvReLU2d"
        assert type(one[1]) is nn.Identity
        torch.testing.assert_close(one(x), model(x))
    twin = network(nn.BatchNorm2d).train()
    twin.load_state_dict(model.state_dict())
    aware = fuse_modules_qat(twin, [names])
    assert type(aware[0]).__name__ == "ConvBnReLU2d"
    torch.testing.assert_close(aware(x), copy.deepcopy(model).train()(x))


@pytest.mark.parametrize("norm", [BatchNorm2d, BatchNormAct2d])
def test_graph_fusers_leave_layers_alone_and_fuse_after_remove(norm):
    model, x = network(norm), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for fuser in (fuse, fuse_fx):
        left = fuser(copy.deepcopy(model))
        assert type(left.get_submodule("1")) is norm
        torch.testing.assert_close(left(x), model(x))
    model = nn.Sequential(*list(model)[:2]) if norm is BatchNormAct2d else model
    folded = batchnorm.remove(model).model.eval()
    if norm is BatchNorm2d:
        folded = nn.Sequential(folded[0], folded[2])  # without the identity in between
    fused = fuse_fx(folded)
    assert [type(layer).__name__ for layer in fused.children()] == ["ConvReLU2d"]
    torch.testing.assert_close(fused(x), model(x))
