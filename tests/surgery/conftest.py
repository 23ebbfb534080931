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
def _repeatable():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: a second thread only waits where cores are shared
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
