"""A trial: one frozen configuration, its key, and the rows it gives."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from batchnorm.data import Data, load
from batchnorm.studies._kept import thinned
from batchnorm.studies._network import build
from batchnorm.train import Row, train


@dataclass(frozen=True)
class Setup:
    """What the user asks of all studies.

    Args:
        scale: "quick", a look in about a minute, or "full": more seeds, more steps.
        model: the user's own network, "module:function"; None for the embedded one.
        data: a name that :func:`batchnorm.data.load` knows.
        seed: the first of the seeds. Studies count theirs from 0; planning adds this to each.
    """

    scale: str = "quick"
    model: str | None = None
    data: str = "digits"
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """Everything that decides one training run, in plain JSON values.

    Args:
        network: "mlp", the embedded fully connected one, "cnn", a small convolutional one for
            images, or the user's "module:function".
        batch_norm: put before every hidden activation, by :func:`batchnorm.surgery.insert`; or left
            in a user's network that has it, which is taken out otherwise.
        activation: "sigmoid" or "relu" for "mlp", "relu" for "cnn"; a user's network has its own.
        depth: hidden layers of "mlp".
        width: hidden units in each of them.
        init_scale: factor on every initial weight (not on biases, nor on batch norm's).
        data: a name that :func:`batchnorm.data.load` knows.
        normalize_inputs: to mean 0 and variance 1 over the training set.
        batch_norm_inputs: a batch norm without gamma and beta in front of the network.
        optimizer: "sgd", "momentum", "rmsprop" or "adam".
        learning_rate: its step size.
        batch_size: examples in a mini-batch.
        steps: mini-batches.
        every: steps between rows.
        seed: of the initial weights and of the order of examples; two trials that
            differ in batch_norm alone share both.
        procedure: "train", or the name of a study, whose ``rows(trial, data)`` gives the rows.
        options: what that procedure alone reads, by name: JSON values; a mapping will do.
    """

    network: str = "mlp"
    batch_norm: bool = False
    activation: str = "relu"
    depth: int = 3
    width: int = 100
    init_scale: float = 1.0
    data: str = "digits"
    normalize_inputs: bool = False
    batch_norm_inputs: bool = False
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    batch_size: int = 60
    steps: int = 400
    every: int = 10
    seed: int = 0
    procedure: str = "train"
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        # 1 and 1.0 are the same learning rate but not the same JSON, and so not the same key.
        for field in fields(self):
            if field.type is float:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        given = cast("Mapping[str, Any] | Iterable[tuple[str, Any]]", self.options)
        options = {name: _frozen(value) for name, value in dict(given).items()}
        object.__setattr__(self, "options", tuple(sorted(options.items())))

    def option(self, name: str) -> Any:
        """One of ``options``.

        Raises:
            KeyError: the trial has no such option.
        """
        return dict(self.options)[name]

    def run(self, fingerprint: str | None = None) -> list[Row]:
        """Train the network from the seed, or do what the procedure says.

        All on one thread, so that rows repeat to the bit.

        Args:
            fingerprint: train on the data that has it, kept from one trial to the next, and on no
                other; None takes the data as it comes, loaded anew.

        Raises:
            ValueError: other data, or what :func:`batchnorm.data.load`, the network or
                :func:`batchnorm.train.train` will not take.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            # Kept only under a fingerprint: without one, a data set may have become another.
            data_of = _examples if fingerprint is None else _kept
            data = data_of(self.data, self.normalize_inputs, fingerprint)
            rows = trained if self.procedure == "train" else _procedure(self.procedure)
            return rows(self, data)
        finally:
            torch.set_num_threads(threads)

    def key(self, context: str) -> str:
        """Hash of the fields and of ``context``: whatever else decides the rows."""
        return hashlib.sha256(f"{canonical(asdict(self))}\n{context}".encode()).hexdigest()


def restored(values: Mapping[str, Any]) -> Trial:
    """A trial as rows keep it: a field that has come since has its default, one gone is dropped.

    >>> restored({"seed": 3, "gone": 1}) == Trial(seed=3)
    True
    """
    names = {field.name for field in fields(Trial)}
    return Trial(**{name: value for name, value in values.items() if name in names})


def trained(trial: Trial, data: Data) -> list[Row]:
    """The trial's network, built from its seed and trained."""
    return thinned(descended(trial, build(trial, data), data))


def descended(
    trial: Trial,
    model: nn.Module,
    data: Data,
    on_row: Callable[[Row], object] | None = None,
) -> list[Row]:
    """A network of a study's own, trained as the trial says; ``on_row`` is called with each row."""
    return train(
        model,
        data,
        optimizer=trial.optimizer,
        learning_rate=trial.learning_rate,
        steps=trial.steps,
        batch_size=trial.batch_size,
        seed=trial.seed,
        every=trial.every,
        on_row=on_row,
    )


def _procedure(name: str) -> Callable[[Trial, Data], list[Row]]:
    module = import_module(f"batchnorm.studies.{name}")
    if not hasattr(module, "rows"):
        raise ValueError(f"procedure {name!r}: that study has no rows(trial, data) of its own")
    return module.rows


def _frozen(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples: trials are keys."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(one) for one in cast("Iterable[Any]", value))
    return value


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _examples(name: str, normalize_inputs: bool, fingerprint: str | None) -> Data:
    data = load(name)
    if fingerprint is not None and data.fingerprint != fingerprint:
        raise ValueError(
            f"data {name!r} came out other (fingerprint {data.fingerprint}) in the process that "
            f"trains than in the one that planned the run ({fingerprint}): it has changed "
            "meanwhile, or its function draws or lists something that differs from process to "
            "process; seed and sort that, and give the same command again"
        )
    return data.normalized() if normalize_inputs else data


_kept = lru_cache(maxsize=4)(_examples)
