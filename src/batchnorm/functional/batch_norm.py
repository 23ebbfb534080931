"""The public function: what it takes, and what it promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from batchnorm.functional._check_kinds import check_axis, check_count, check_input, check_switch
from batchnorm.functional._normalize import Rare, normalize
from batchnorm.functional._running import Running
from batchnorm.kernels._activation import Activation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | nn.Module | Activation | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    axis: int = 1,
    backend: str | None = None,
    num_batches_tracked: Tensor | None = None,
    inplace: bool = False,
    update: bool | None = None,
    skipped: Tensor | None = None,
    bias_correction: bool = False,
    one_value: str = "raise",
    ghost_size: int | None = None,
    renorm: tuple[float, float] | None = None,
    process_group: ProcessGroup | str | None = None,
    pool: Tensor | None = None,
) -> Tensor:
    r"""Batch normalization, with the argument order of `torch.nn.functional.batch_norm`.

    .. math:: y = f\left(\gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta + r\right)

    In training mu and sigma^2 are the mean and the biased variance of this batch, per channel, and
    the running statistics, where given, move by `momentum` towards mu and the unbiased variance.
    In evaluation they are the running statistics.

    Args:
        x: ``(N, C, ...)`` or any shape with the channels on `axis`; float64, float32, bfloat16 or
            float16. Half precision is computed in a wider type. Of a nested tensor, whose examples
            differ in length or size, every position is data; `axis` counts its own axes (torch's
            nested tensors have first derivatives only).
        running_mean: ``(C,)``; updated in place in training, needed in evaluation.
        running_var: ``(C,)``; as `running_mean`.
        weight: gamma, ``(C,)``, of any floating dtype; None for ones.
        bias: beta, ``(C,)``; None for zeros.
        training: normalize with the batch's own statistics.
        momentum: the share of the new batch in the running statistics; None for a plain average
            over the batches that `num_batches_tracked` counts.
        eps: added to the variance; above zero.
        activation: f, applied last: a name such as "relu", or a `torch.nn` activation module.
        residual: r, added before the activation; of x's shape.
        mask: which positions are data: ``(N,)`` for whole examples, or x's shape without the
            channel axis. A bool mask selects; a real-valued one weights, as frequencies: 2.0 counts
            as two such positions, and weights that sum to 1 would be one value in all. What is left
            out (by False or 0) enters neither statistics nor gradients, comes out as 0, and may
            hold NaN. A weight that is negative, infinite or NaN raises in eager calls on a CPU;
            elsewhere negative ones and NaN count as 0. Where all are left out all comes out as 0
            and the running statistics stay as they are; in training eager calls on a CPU raise
            then. A mask has no gradient, and raises if it requires one.
        axis: where the channels are.
        backend: the name of one kernel that must be used; None for the first that takes the call.
        num_batches_tracked: an integer tensor that counts the batches which were taken into the
            running statistics.
        inplace: write the output over x and take gradients from the output, for activations that
            can be undone (identity, leaky_relu, elu). Fresh memory is used all the same where
            rounding the output would lose the input's digits (a weight near zero, a large bias
            over weight, a saturated ELU), where autograd holds x for another gradient, and under
            compilation, transforms and modes, where another argument shares x's memory, and where
            statistics are merged over processes; the logger "batchnorm" tells why at level INFO. In
            evaluation with a weight that requires a gradient x is read once more, to judge by its
            own spread whether that gradient keeps its digits. Where the gradient of x or of the
            weight is a small difference of large terms it has the digits of these, as the output
            was rounded.
        update: whether this call moves the running statistics; None for as `training`. With
            ``training=False`` it normalizes with the running ones as they were, then moves them.
        skipped: an integer tensor that counts the batches which were kept out for being not finite.
        bias_correction: move by ``momentum / (1 - (1 - momentum)^t)`` at the t-th batch, as
            `num_batches_tracked` counts, so that what the running statistics held at first has no
            share in them: they equal the batch's own after the first one.
        one_value: what a batch in training with one value per channel gets, of which the variance
            is zero: "raise" an error; normalize it with the "running" statistics; or "beta", as
            what lies at its mean does: ``f(beta + r)``, with no gradient for x and gamma. Neither
            moves the running statistics. With a mask, whose values decide, only the last two apply.
        ghost_size: normalize each group of so many examples, contiguous along the batch, with its
            own statistics, and what is left over as a smaller group. Each group moves the running
            statistics in its turn and counts as a batch (Hoffer, Hubara and Soudry 2017).
        renorm: ``(r_max, d_max)`` for batch renormalization (Ioffe 2017): in training the output is
            ``gamma (r (x - mu) / sigma + d) + beta`` with ``r = sigma / sigma_running`` clipped to
            ``[1 / r_max, r_max]`` and ``d = (mu - mu_running) / sigma_running`` to
            ``[-d_max, d_max]``, constants to the gradient, from the running statistics as they were
            before this batch. ``(1, 0)`` is plain batch norm.
        process_group: the processes that share their statistics: "world" for all, a group of
            `torch.distributed.new_group`, or None for this one alone; see below. Not together with
            `ghost_size`.
        pool: ``(3, C)``, count, mean and biased variance, in the widest type of the device: where
            given, this batch's moments are merged into it instead of moving running statistics.

    Returns:
        A tensor of x's shape, dtype and memory layout; x itself where it was overwritten.

    Raises:
        ValueError: shapes that do not fit, ``eps <= 0``, one value per channel in training, no
            running statistics in evaluation, an unknown activation or backend, a named backend
            that refuses the call, a mask that leaves nothing, inplace with an activation that
            cannot be undone, options for small batches that are unknown or need running
            statistics, or a process group that this process does not belong to.
        TypeError: x is not a floating tensor, or the activation module has no fused form, or
            process_group is no group.
        RuntimeError: another rank of the group died, refuses its input, has other channels or is
            at another point of its program; export with a process group.
        NotImplementedError: `torch.vmap` with a process group.

    Example:
        >>> import torch
        >>> z = torch.tensor([[1.0, 100.0], [3.0, 300.0]])
        >>> batch_norm(z, training=True)
        tensor([[-1.0000, -1.0000],
                [ 1.0000,  1.0000]])

    Under `torch.export` and `torch.jit.trace`, and in evaluation under `torch.compile`, the graph
    holds torch's own operators, with torch's limits: what is exported in training does not keep a
    spoiled batch out of the running statistics. What torch's operator does not compute (a mask;
    in training the options for small batches, ``momentum=None``, `bias_correction` and running
    statistics that normalize and move) is exported as operators of this package, which must be
    imported where such a program runs.

    With `process_group` the moments of all its ranks are gathered and merged by their exact
    counts, so that each rank normalizes with the same bits, and so are the sums of the backward
    pass: one exchange each, and none where no statistics of the batch are needed. Every rank makes
    each call and its backward pass, in the same order: one that has run out of data with an empty
    batch, ``x[:0]``, and one whose output takes part in no loss by adding ``0 * y.sum()`` to it.
    Whether there is one value per channel, and whether the batch is finite, is judged on all ranks
    together. Gradients of `weight` and `bias` are those of this rank's share, which
    DistributedDataParallel brings together. Where torch.distributed is not initialized, "world" is
    this process alone. On CUDA the host looks at what others sent only when a number of channels
    comes for the first time; a rank that deviates later spoils the others' output with NaN.

    Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.
    """
    check_input("x", x)
    on_or_off = type(training) is type(inplace) is type(bias_correction) is bool
    if not (on_or_off and type(axis) is int and (update is None or type(update) is bool)):
        _check_rest(x, training, axis, inplace, update, bias_correction)
    if num_batches_tracked is not None:
        check_count("num_batches_tracked", num_batches_tracked)
    if skipped is not None:
        check_count("skipped", skipped)
    rare = None
    group = process_group if training or update else None
    if one_value != "raise" or not ghost_size is renorm is group is None:
        rare = Rare(one_value, ghost_size, renorm, group)
    tracked = running_mean is not None or running_var is not None
    running = Running(
        running_mean,
        running_var,
        num_batches_tracked,
        skipped,
        momentum,
        bias_correction,
        tracked and (training if update is None else update),
        pool,
    )
    options = weight, bias, running, training, eps, activation, backend, rare, inplace
    return normalize(x, residual, mask, axis, options)


def _check_rest(
    x: Tensor,
    training: object,
    axis: object,
    inplace: object,
    update: object,
    bias_correction: object,
) -> None:
    """What is neither on nor off would count as on, and True or 1.0 as an axis."""
    switches = {"training": training, "inplace": inplace, "bias_correction": bias_correction}
    for name, value in switches.items():
        check_switch(name, value)
    if update is not None:
        check_switch("update", update)
    check_axis(axis, x.dim(), f"x of {x.dim()} dimensions")
