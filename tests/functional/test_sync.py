"""Statistics merged over processes: real ones, started by torchrun on loopback."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchnorm import BatchNorm1d
from batchnorm.functional import batch_norm

SCRIPT = Path(__file__).with_name("sync_ranks.py")
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, folder):
    """What every rank found: the name of each check, and its traceback where it failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(request.param), str(SCRIPT), str(folder)]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    files = [folder / f"{request.param}-{rank}.json" for rank in range(request.param)]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(ranks, name):
    for rank, found in enumerate(ranks):
        assert found[name] == "", f"rank {rank}: {found[name]}"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_layer_loaded_in_another_run_asks_for_a_group(ranks, folder, rank):
    layer = pickle.loads((folder / f"layer-2-{rank}.pickle").read_bytes())
    layer.eval()(torch.randn(3, 4))
    with pytest.raises(
        ValueError, match=r"is that of another run .named .*, of ranks .0, 1."
    ) as told:
        layer.train()(torch.randn(3, 4))
    assert "layer.process_group = 'world'" in str(told.value)
    layer.process_group = "world"
    assert layer(torch.randn(3, 4)).shape == (3, 4)


def test_one_process_is_an_ordinary_layer():
    x, ours, plain = torch.randn(5, 4), BatchNorm1d(4, process_group="world"), BatchNorm1d(4)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(x[:1])
    assert torch.vmap(ours, randomness="different")(torch.randn(2, 5, 4)).shape == (2, 5, 4)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), plain(x))


def test_what_is_no_group():
    x = torch.randn(5, 4)
    with pytest.raises(
        ValueError, match="process_group='all' is not known; expected None, 'world'"
    ):
        batch_norm(x, training=True, process_group="all")
    with pytest.raises(TypeError, match="process_group is a list; expected None for no merging"):
        BatchNorm1d(4, process_group=[0, 1])
    with pytest.raises(
        ValueError, match=r"does not belong to .new_group\(\.\.\.\) gave it GroupMember"
    ):
        BatchNorm1d(4, process_group=torch.distributed.GroupMember.NON_GROUP_MEMBER)
