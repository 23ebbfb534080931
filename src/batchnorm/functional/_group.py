"""Which process group a call merges its statistics over."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._functorch import TransformType, get_interpreter_stack

WORLD = "world"
_resolve: Any = dist.distributed_c10d._resolve_process_group if dist.is_available() else None


def name_of(process_group: Any) -> str:
    """The name by which operators know a group; empty where there is nobody to merge with.

    Raises:
        TypeError: what is no group.
        RuntimeError: under `torch.export`.
        NotImplementedError: under `torch.vmap`.
        ValueError: a group that this process does not belong to, or that was destroyed.
    """
    name = _name(process_group)
    if name:
        _refuse_transforms()
    return name


def _refuse_transforms() -> None:
    if torch.compiler.is_exporting():
        raise RuntimeError(
            "batch_norm with process_group under torch.export: an exported graph holds no groups "
            "of this run; expected process_group=None, or the model in evaluation: model.eval()"
        )
    stack = get_interpreter_stack() if torch._C._are_functorch_transforms_active() else None
    if any(level.key() == TransformType.Vmap for level in stack or ()):
        raise NotImplementedError(
            "batch norm with process_group under torch.vmap is not supported: ranks that map over "
            "unequal numbers of examples could not meet; expected process_group=None, or a batch "
            "axis instead of the mapped one"
        )


def _name(process_group: Any) -> str:
    check(process_group)
    if torch.compiler.is_dynamo_compiling():  # looked up when the graph runs
        return WORLD if isinstance(process_group, str) else process_group.group_name
    if not isinstance(process_group, str):
        return "" if process_group.size() == 1 else process_group.group_name
    return WORLD if found(WORLD) is not None else ""


def check(process_group: Any) -> None:
    """Check that this is "world" or a living group of this process."""
    if isinstance(process_group, str):
        if process_group == WORLD:
            return
        raise ValueError(
            f"process_group={process_group!r} is not known; expected None, 'world' for all "
            f"processes, or a group of torch.distributed.new_group(...)"
        )
    if dist.is_available():
        outside = dist.GroupMember.NON_GROUP_MEMBER
        if isinstance(process_group, type(outside)) and process_group == outside:
            raise ValueError(
                "process_group is a group that this process does not belong to (new_group(...) "
                "gave it GroupMember.NON_GROUP_MEMBER); expected on each rank a group with that "
                "rank in it: make one group for each part of the ranks and give each rank its own, "
                "as torch.distributed.new_subgroups() does, or process_group=None"
            )
        if isinstance(process_group, dist.ProcessGroup):
            if not torch.compiler.is_dynamo_compiling():
                found(process_group.group_name)
            return
    if isinstance(process_group, Elsewhere):
        raise ValueError(
            f"process_group is that of another run (named {process_group.name!r}, of ranks "
            f"{list(process_group.ranks)}), from which the layer was loaded; give it one of this "
            f"run, layer.process_group = 'world', or None"
        )
    raise TypeError(
        f"process_group is a {type(process_group).__name__}; expected None for no merging, "
        f"'world' for all processes, or a group of torch.distributed.new_group(...)"
    )


@dataclass(frozen=True)
class Elsewhere:
    """A group as a pickle remembers it."""

    name: str
    ranks: tuple[int, ...]


def remembered(process_group: Any) -> Any:
    """What can be pickled of a layer's group."""
    if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        return process_group
    ranks: list[int] = []
    with suppress(KeyError, RuntimeError):  # destroyed meanwhile
        ranks = dist.get_process_group_ranks(process_group)
    return Elsewhere(process_group.group_name, tuple(ranks))


def recalled(kept: Any) -> Any:
    """The group of this process that was remembered; where there is none, what was."""
    if isinstance(kept, Elsewhere) and dist.is_available() and dist.is_initialized():
        with suppress(LookupError, RuntimeError):
            group: Any = _resolve(kept.name)
            if tuple(dist.get_process_group_ranks(group)) == kept.ranks:
                return group
    return kept


def found(name: str) -> Any:
    """The group of that name; None where only one process stands behind it."""
    if name == WORLD:
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group: Any = dist.group.WORLD
    else:
        try:
            group = _resolve(name)
        except (LookupError, RuntimeError) as error:
            raise ValueError(
                f"process_group with the name {name!r} is not among this process's groups; it was "
                f"destroyed, or made by another process: give the layer one of this process by "
                f"layer.process_group = ..."
            ) from error
    return None if group.size() == 1 else group


def described(group: Any) -> str:
    """A group in words."""
    return (
        f"the process group {group.group_name!r} of {group.size()} ranks (this is its rank "
        f"{group.rank()})"
    )


def limit(group: Any, device: torch.device) -> str:
    """The time limit of a group's exchanges."""
    options = getattr(group._get_backend(device), "options", None)
    timeout = getattr(options, "_timeout", None)
    return "unknown length" if timeout is None else f"{timeout.total_seconds():g} s"
