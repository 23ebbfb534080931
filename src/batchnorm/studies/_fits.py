"""Whether the user's network can be trained on the data: tried before hundreds of trials are."""

from dataclasses import replace

from batchnorm.data import Data, Examples
from batchnorm.studies._network import build, fresh
from batchnorm.studies._trial import Trial
from batchnorm.studies._workers import reason
from batchnorm.train import seeded, train


def check_fits(model: str, name: str, data: Data, *, batch_norm: bool | None = None) -> None:
    """Train the network for one step, so that all that a trial does with it has been done once.

    Args:
        model: "cnn", or the user's "module:function".
        name: of the data.
        data: what is behind it.
        batch_norm: the arm with batch norm, or the one without; None for the network as it is.

    Raises:
        ValueError: the network cannot be made, does not take the data, or cannot be trained.
    """
    trial = Trial(network=model, data=name, batch_norm=bool(batch_norm))
    if batch_norm is None:
        with seeded(trial.seed):
            network = fresh(model, data)
    else:
        network = build(trial, data)
    few = replace(data, validation=_few(data.validation), test=_few(data.test))
    arm = {None: "", True: " with batch norm", False: " without batch norm"}[batch_norm]
    try:
        train(network, few, batch_size=trial.batch_size, steps=1, every=1)
    except Exception as error:
        text = str(error) if isinstance(error, ValueError) else reason(error)
        raise ValueError(
            f"model {model!r}{arm} cannot be trained on data {name!r}: {text}"
        ) from error


def _few(examples: Examples) -> Examples:
    return Examples(examples.x[:2], examples.y[:2])
