"""DistributedDataParallel trains our layers as it trains torch's: real processes on loopback."""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchnorm import BatchNorm1d, BatchNorm2d, BatchNormAct2d

RANKS = 2


def network(norm1, norm2):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), norm2(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * 9, 5, bias=False), norm1(5),
    )  # fmt: skip


def fused(inplace):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), BatchNormAct2d(4, "leaky_relu", inplace=inplace),
        nn.Flatten(), nn.Linear(4 * 9, 5, bias=False), BatchNorm1d(5),
    )  # fmt: skip


def trained(model, rank, **options):
    """The state after three steps on data of this rank's own."""
    model = DistributedDataParallel(copy.deepcopy(model), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = torch.randn(6 + rank, 3, 5, 5, generator=generator)
        optimizer.zero_grad()
        model(x).sin().sum().backward()
        optimizer.step()
    return model.module.state_dict()


def worker(rank, port, results):
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    ours, theirs = network(BatchNorm1d, BatchNorm2d), network(nn.BatchNorm1d, nn.BatchNorm2d)
    states = {
        "theirs": trained(theirs, rank),
        "ours": trained(ours, rank),
        "views": trained(ours, rank, gradient_as_bucket_view=True, static_graph=True),
        "fused": trained(fused(False), rank),
        "in place": trained(fused(True), rank),
    }
    torch.save(states, f"{results}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    results = tmp_path_factory.mktemp("states")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(results)), nprocs=RANKS)
    return [torch.load(results / str(rank)) for rank in range(RANKS)]


@pytest.mark.parametrize("way", ["ours", "views"])
def test_trained_as_torch_trains(states, way):
    for rank in states:
        assert rank[way].keys() == rank["theirs"].keys()
        for name, value in rank[way].items():
            torch.testing.assert_close(value, rank["theirs"][name], rtol=1e-4, atol=1e-5, msg=name)


def test_in_place_as_out_of_place(states):
    for rank in states:
        for name, value in rank["in place"].items():
            torch.testing.assert_close(value, rank["fused"][name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("way", ["ours", "views", "in place"])
def test_all_ranks_hold_the_same_parameters(states, way):
    first, second = (rank[way] for rank in states)
    for name in first:
        if "running" not in name:
            assert torch.equal(first[name], second[name]), name
