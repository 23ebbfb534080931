"""What recording costs: `python benchmarks/recorder.py`; the same steps with and without it, in turn.

Each pair is one network's run of as many steps, recorded and not, in random order; what it costs is
the ratio of their processor times, so that what else the machine does counts for less.
"""

import argparse
import random
import statistics
import time

import torch
from measure import ratio
from resnet import NORMS, resnet18
from torch.nn.functional import cross_entropy

import batchnorm
from batchnorm.data import load
from batchnorm.studies._network import build
from batchnorm.studies._trial import Trial


def mlp(activation):
    """The embedded network with batch norm, and a mini-batch of 60."""
    data = load("digits")
    return build(Trial(batch_norm=True, activation=activation), data), data.train.x[:60]


def images():
    """ResNet-18 for 32x32 images, our fused layers, and a mini-batch of 32."""
    torch.manual_seed(0)
    return resnet18(NORMS["ours"], "relu"), torch.randn(32, 3, 32, 32)


def paired(model, x, every, steps, pairs):
    """Processor seconds a step with and without a record, one pair after the other."""
    labels = torch.arange(len(x)) % 10
    descent = torch.optim.SGD(model.parameters(), lr=1e-3)

    def run():
        for _ in range(steps):
            loss = cross_entropy(model(x), labels)
            descent.zero_grad()
            loss.backward()
            descent.step()

    def recorded():
        with batchnorm.record(model, every=every):
            run()

    times = {recorded: [], run: []}
    recorded(), run()
    for _ in range(pairs):
        for one in random.sample(list(times), 2):
            start = time.process_time()
            one()
            times[one].append((time.process_time() - start) / steps)
    return times[recorded], times[run]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=21)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    networks = {"mlp, sigmoid": mlp("sigmoid"), "mlp, ReLU": mlp("relu"), "ResNet-18": images()}
    for name, (model, x) in networks.items():
        for every in (10, 20, 50):
            steps, rounds = (every, max(3, pairs // 7)) if name == "ResNet-18" else (400, pairs)
            both = paired(model, x, every, steps, rounds)
            extra = [f"{100 * (part - 1):5.1f} %" for part in ratio(*both)]
            step = 1000 * statistics.median(both[1])
            print(f"{name:12s} every {every:2d}: {extra[0]} ({extra[1]} to {extra[2]}), "
                  f"a step takes {step:.2f} ms")  # fmt: skip
