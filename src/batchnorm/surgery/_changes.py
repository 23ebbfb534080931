from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn


@dataclass(frozen=True)
class Changes:
    """What a verb did to a model: the new model, and an account of it that has each path once.

    Attributes:
        model: the new model.
        changed: (path, what was done there).
        skipped: (path, why it was left alone).
        error: the greatest deviation of the new model's output from the old one's, as measured;
            None where the verb means to change the output, or had no example.
    """

    model: nn.Module
    changed: list[tuple[str, str]]
    skipped: list[tuple[str, str]]
    error: float | None = None

    if not TYPE_CHECKING:  # a type checker knows that it is no model

        def __call__(self, *_: object, **__: object) -> None:
            raise TypeError("Changes is an account of what was done to a model; call its .model")

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"Changes has no {name!r}; it is an account of what was done to a model: its .model"
            )

    def __str__(self) -> str:
        """A table: path and change, path and reason."""
        parts = [("changed", self.changed), ("left alone", self.skipped)]
        width = max((len(path or ".") for _, rows in parts for path, _ in rows), default=0)
        lines = [f"{type(self.model).__name__}: {len(self.changed)} changed, "]
        lines[0] += f"{len(self.skipped)} left alone"
        for title, rows in parts:
            lines += [f"{title}:"] if rows else []
            lines += [f"  {path or '.':<{width}}  {text}" for path, text in rows]
        if not self.changed and not self.skipped:
            lines = [f"{type(self.model).__name__}: nothing to change"]
        lines += [] if self.error is None else [f"measured error: {self.error:.3g}"]
        return "\n".join(lines)
