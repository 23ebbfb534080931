"""What counts as a batch norm."""

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchnorm.layers import BatchNormAct1d


def is_batch_norm(module: nn.Module) -> bool:
    """Torch's batch norms, what derives from them, and ours."""
    return isinstance(module, _BatchNorm | BatchNormAct1d)


def called_as_functions(graph: fx.Graph) -> list[fx.Node]:
    """The calls of batch norm as a function or operator, of no module, in a graph."""
    return [
        node
        for node in graph.nodes
        if node.op == "call_function" and "batch_norm" in str(getattr(node.target, "__name__", ""))
    ]
