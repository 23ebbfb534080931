"""Messages among the ranks of a process group, so that none waits for what does not come.

In an exchange every rank gives its numbers to all. Its messages are equally long and begin with
what their rank is about, so that a rank which differs, or refuses its input, is an error on all
ranks: the transport itself would abort or hang. What length to expect each knows from the exchanges
before, which all have seen alike; where the numbers do not fit, a second message follows.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from batchnorm.functional._group import described, limit

REFUSED, FORWARD, BACKWARD, FURTHER = range(4)
_PASSES = ("the refusal", "the forward pass", "the backward pass", "a second derivative")
_ROWS = (0, 3, 2, 1)  # numbers for each channel
_ROOM = 3 * 512  # numbers that every message takes: as quick as a tenth of them


class _About(NamedTuple):
    """What a message is about; its first number."""

    kind: int
    channels: int

    @property
    def code(self) -> float:
        return float(self.kind + len(_PASSES) * self.channels)

    @property
    def length(self) -> int:
        return _ROWS[self.kind] * self.channels

    @classmethod
    def of(cls, code: float) -> _About:
        channels, kind = divmod(int(code), len(_PASSES))
        return cls(kind, channels)


class _History:
    """What a group's exchanges were about, known alike to all of its ranks."""

    def __init__(self) -> None:
        self.last = -1
        self.following: dict[int, int] = {}  # after a length, the longest that came next
        self.agreed: set[_About] = set()

    def room(self) -> int:
        return max(self.following.get(self.last, 0), _ROOM)

    def note(self, length: int) -> None:
        self.following[self.last] = max(self.following.get(self.last, 0), length)
        self.last = length


_histories: WeakKeyDictionary[Any, _History] = WeakKeyDictionary()


def refuse(group: Any) -> None:
    """Join the others' exchange with nothing, so that they raise too instead of waiting."""
    _exchange(torch.empty(0, dtype=torch.float64), _About(REFUSED, 0), group)


def exchange(values: Tensor, kind: int, group: Any) -> Tensor:
    """`values` of shape (rows, C) of every rank, (ranks, rows, C).

    Raises:
        RuntimeError: a rank is at another point, has other channels, refuses or has died.
    """
    parts = _exchange(values, _About(kind, values.shape[1]), group)
    return parts.unflatten(1, values.shape).to(values)


def _exchange(values: Tensor, about: _About, group: Any) -> Tensor:
    history = _histories.setdefault(group, _History())
    room = history.room()
    device = _carrier(values, group)
    message = torch.zeros(1 + room, dtype=torch.float64, device=device)
    message[0] = about.code
    if about.length <= room:
        message[1 : 1 + about.length] = values.flatten()
    gathered = _gathered(message, about, group)
    codes, parts = gathered[:, 0], gathered[:, 1 : 1 + about.length]
    if device.type != "cpu" and about in history.agreed:  # to look would make the host wait
        history.note(about.length)
        if about.length <= room:
            return torch.where((codes == about.code).all(), parts, torch.nan)
    else:
        seen = [_About.of(code) for code in codes.tolist()]
        history.note(max(one.length for one in seen))
        if about.kind == REFUSED:
            return parts
        if any(one != about for one in seen):
            raise RuntimeError(_disagreement(seen, about, group))
        history.agreed.add(about)
    if about.length <= room:
        return parts
    return _gathered(values.flatten().to(message), about, group)


def _carrier(values: Tensor, group: Any) -> torch.device:
    """Where the group's messages travel: where the values are, or by way of the CPU."""
    carried = {torch.device(d).type for d in group._device_types}
    if values.device.type in carried or not carried:
        return values.device
    if "cpu" in carried:
        return torch.device("cpu")
    return torch.device(carried.pop(), torch.accelerator.current_device_index())


def _gathered(message: Tensor, about: _About, group: Any) -> Tensor:
    """The messages of all ranks, one a row."""
    rows = message.new_empty(group.size() * message.numel())
    started = time.monotonic()
    try:
        group._allgather_base(rows, message).wait()
    except RuntimeError as error:
        waited = time.monotonic() - started
        raise RuntimeError(
            f"batch_norm(process_group=...) could not merge its statistics in "
            f"{_PASSES[about.kind]} over {described(group)}, which has a time limit of "
            f"{limit(group, message.device)}: after {waited:.1f} s a rank has died or did not "
            f"make this call; {_WAYS}. To give slow ranks more time: "
            f"init_process_group(timeout=...). torch says: {error}"
        ) from error
    return rows.view(group.size(), -1)


_WAYS = (
    "look for the first error among the ranks and start all of them again. Every rank must make "
    "each call and its backward pass: one that has run out of data with an empty batch, such as "
    "x[:0], and one whose output y takes part in no loss by adding 0 * y.sum() to it"
)


def _disagreement(seen: list[_About], about: _About, group: Any) -> str:
    lines: list[str] = []
    for rank, one in zip(dist.get_process_group_ranks(group), seen, strict=True):
        if one.kind == REFUSED:
            lines.append(f"rank {rank} refuses its input, and its own error says why")
        else:
            lines.append(f"rank {rank} is in {_PASSES[one.kind]} with {one.channels} channels")
    return (
        f"batch_norm(process_group=...) cannot merge statistics over {described(group)}, whose "
        f"ranks are not at the same point: {'; '.join(lines)}; expected the same call with the "
        f"same number of channels on every rank: {_WAYS}"
    )
