import pytest
import torch


def _define_missing_operators():
    """torchvision's import names operators that its C extension defines, where that loads."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + signature)
    return library


_LIBRARY = _define_missing_operators()  # kept alive: what it defines goes with it


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
