"""The user's network and data: the same each time they are asked for, or refused."""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batchnorm.data import Data, load
from batchnorm.studies._network import own
from batchnorm.train import seeded


def loaded(name: str) -> Data:
    """The data set; the user's own is asked for twice.

    Raises:
        ValueError: as :func:`batchnorm.data.load`; or it is another at the second call.
    """
    data = load(name)
    if ":" in name and load(name).fingerprint != data.fingerprint:
        raise ValueError(
            f"data {name!r} is other data at each call, so that no run of it could be repeated: "
            "seed what the function draws (generator=torch.Generator().manual_seed(0), or "
            "numpy.random.default_rng(0)), and sort what it lists"
        )
    return data


def initial_state(name: str) -> str:
    """Hash of the weights with which the user's network starts, given one seed.

    Raises:
        ValueError: the function cannot be used, returns tensors that it has returned before, or
            other weights at the second call.
    """
    first = _made(name)
    try:
        before = _hash(first)
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error
    second = _made(name)
    kept = _storages(first).keys() & _storages(second).keys()
    if kept:
        paths = sorted(_storages(second)[pointer] for pointer in kept)
        shown = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
        raise ValueError(
            f"model {name!r} returns the same tensors at every call ({shown}): what one trial has "
            "trained would be the start of the next; make the network inside the function"
        )
    if _hash(second) != before:
        raise ValueError(
            f"model {name!r} starts from other weights when it is made again with the same seed, "
            "so that no trial of it could be repeated: draw them from the global generators of "
            "torch, NumPy or random (trials seed these), or from one with a fixed seed"
        )
    return before


def check_initial_state(name: str, planned: str) -> None:
    """Refuse a network that does not start as it did where the run was planned.

    Raises:
        ValueError: it does not; or the function cannot be used.
    """
    if _hash(_made(name)) != planned:
        raise ValueError(
            f"model {name!r} starts from other weights in the process that trains than in the one "
            "that planned the run: a file that it reads has changed meanwhile, or it depends on "
            "the process; mend that, and give the same command again"
        )


def _made(name: str) -> nn.Module:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as trials have
    try:
        with seeded(0):
            return own(name)
    finally:
        torch.set_num_threads(threads)


def _storages(model: nn.Module) -> dict[int, str]:
    """Where the tensors that training changes lie in memory: parameters and running averages."""
    named: Iterable[tuple[str, Tensor]] = [
        *((path, p) for path, p in model.named_parameters() if p.requires_grad),
        *model.named_buffers(),
    ]
    return {
        tensor.untyped_storage().data_ptr(): path
        for path, tensor in named
        if not is_lazy(tensor) and tensor.numel()
    }


def _hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            digest.update(f"{path} lazy".encode())
            continue
        if tensor.is_meta:
            raise ValueError(
                f"{path} has a shape but no values (device meta): make the network on a device "
                "that holds them"
            )
        digest.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(np.ascontiguousarray(flat.view(torch.uint8).numpy()).data)
    return digest.hexdigest()[:16]
