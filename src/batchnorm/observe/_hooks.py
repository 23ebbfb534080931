"""Steps counted at the root; layers looked at only while a recorded step runs."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from batchnorm.observe._layers import axis_of, is_batch_norm, tells_moments, tensor_in, unwrapped
from batchnorm.observe._parts import Part, Seen, calls_as_one, mask_of, part_of, squares_of, told_by
from batchnorm.observe._states import States, gradients_of, states_of


class Hook:
    """A hook that does nothing in a copy of the model, nor in one that was saved with it."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *given: Any) -> None:
        self.call(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, (_nothing,)


def _nothing(*given: Any) -> None:
    """What a hook of another model's record does."""


class Watch:
    """Counts a model's training forwards, and hands over what every so many of them showed.

    Args:
        root: the model that is called.
        layers: those to look at, by path.
        every: steps from one that is recorded to the next.
        optimizer: whose steps are the steps; None to count training forwards.
        done: called with the step, its values and its states, when the step is over.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: dict[str, nn.Module],
        every: int,
        optimizer: torch.optim.Optimizer | None,
        done: Callable[[int, Seen, States], None],
    ) -> None:
        self.root, self.layers, self.every, self.done = root, layers, every, done
        self.axes = {path: axis_of(module) for path, module in layers.items()}
        self.norms = {path: module for path, module in layers.items() if is_batch_norm(module)}
        self.inner = unwrapped(root)
        self.compiled = any(map(_is_compiled, root.modules()))
        self.optimizer = optimizer
        self.count = 0  # of training forwards, or of the optimizer's steps
        self.forwards = 0
        self.open: int | None = None  # the step whose values are being gathered
        self.running = False  # a forward of that step
        self.fresh: list[tuple[tuple[str, str], Part]] = []  # of the forward that is running
        self.seen: dict[tuple[str, str], list[Part]] = {}
        self.states: States = []
        self.telling = {path for path, module in self.norms.items() if tells_moments(module)}
        self.late = {p for p, m in self.norms.items() if any(map(is_lazy, m.parameters()))}
        self.told: set[str] = set()  # layers of which a warning was given
        self.followed: set[str] = set()  # layers whose gradients are waited for
        self.reached: set[str] = set()  # layers that a backward pass has come through
        self.lasting, self.step_long, self.forward_long = ExitStack(), ExitStack(), ExitStack()

    def start(self) -> None:
        """Begin to count."""
        root, keep = self.root, self.lasting.callback
        compiled = root._compiled_call_impl
        if compiled is not None:  # model.compile() would trace hooks of the root
            root._compiled_call_impl = partial(self._compiled, compiled)
            keep(setattr, root, "_compiled_call_impl", compiled)
        else:
            keep(root.register_forward_pre_hook(Hook(self._begin)).remove)
            # Hooks that a call itself adds to its own module come too late for it.
            self._look_at([path for path, module in self.layers.items() if module is root], keep)
            keep(root.register_forward_hook(Hook(self._end), always_call=True).remove)
        if self.optimizer is not None:
            keep(self.optimizer.register_step_post_hook(self._stepped).remove)

    def stop(self) -> None:
        """Give everything back, and hand over the last step."""
        self.forward_long.close()
        self.lasting.close()
        self._finish()

    def _compiled(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = None
        self._begin(self.root)
        try:
            result = call(*args, **kwargs)
        finally:
            self._end(self.root, args, result)
        return result

    def _begin(self, module: nn.Module, *given: Any) -> None:
        self.running = self.counted = False
        if module is not self.root or torch.compiler.is_compiling():
            return
        if not self.inner.training or not torch.is_grad_enabled() or _recomputing() or _mapped():
            return
        self.counted = True
        if self.open not in (None, self.count):
            self._finish()
        if self.count % self.every == 0:
            if self.open is None:
                self._open()
            if not self.seen:  # the first forward, or that after one that raised
                self.states = states_of(self.norms)
            self.running = True
            if self.compiled:  # compiled code calls no hooks
                self.forward_long.enter_context(torch.compiler.set_stance("force_eager"))

    def _end(self, module: nn.Module, args: Any, result: Any) -> None:
        if module is not self.root or torch.compiler.is_compiling():
            return
        self.forward_long.close()
        self.running = False
        if result is not None:  # it did not raise
            for key, part in self.fresh:
                self.seen.setdefault(key, []).append(part)
            if self.counted:
                self.forwards += 1
                self.count += self.optimizer is None
        self.fresh.clear()

    def _stepped(self, *given: Any) -> None:
        self.count += 1

    def _open(self) -> None:
        self.open = self.count
        inside = [path for path, module in self.layers.items() if module is not self.root]
        self._look_at(inside, self.step_long.callback)

    def _look_at(self, paths: list[str], keep: Callable[..., object]) -> None:
        for path in paths:
            module = self.layers[path]
            if path in self.norms and path not in self.telling:
                before = Hook(partial(self._before, path))
                keep(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            after = Hook(partial(self._after, path))
            keep(module.register_forward_hook(after, with_kwargs=True).remove)

    def _finish(self) -> None:
        """The step is over: its values are handed over, its hooks taken away."""
        self.step_long.close()
        if self.open is not None and self.seen:
            self.done(self.open, self._kept(), self.states)
        self.open, self.seen, self.states = None, {}, []
        self.followed = set()

    def _kept(self) -> Seen:
        kept, odd = calls_as_one(self.seen)
        for path, counts in odd.items():
            if path in self.told:
                continue
            self.told.add(path)
            warnings.warn(
                f"{path!r} was called with {' and '.join(map(str, sorted(set(counts))))} channels "
                f"in one step: the calls with {counts[0]} are recorded; for the others, give each "
                f"place a module of its own",
                RuntimeWarning,
                stacklevel=2,
            )
        return kept

    def _before(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        # Before it is called, since a layer may write its output over its input.
        x = tensor_in(args) if args else tensor_in(kwargs.get("input"))
        if not self.running or x is None or _recomputing():
            return
        axis = self.axes[path]
        self._keep(path, "input", part_of(x, axis, mask_of(module, x, axis, kwargs)))
        if path in self.late:
            self.late.discard(path)
            self.states += states_of({path: module})

    def _after(self, path: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        recomputing = _recomputing()
        y = tensor_in(result)
        if y is None or not (self.running or recomputing):
            return
        axis, norm = self.axes[path], path in self.norms
        mask = mask_of(module, y, axis, kwargs) if norm else None
        if not recomputing:
            if path in self.telling:
                x = tensor_in(args) if args else tensor_in(kwargs.get("input"))
                found = told_by(y, axis) or (None if x is None else part_of(x, axis, mask))
                self._keep(path, "input", found)
            self._keep(path, "output", part_of(y, axis, mask))
        elif path in self.followed:
            return
        if y.requires_grad:
            # A forward that is run again for its gradients had none of its own the first time.
            self.followed.add(path)
            y.register_hook(partial(self._gradient, self.open, path, axis, mask))

    def _keep(self, path: str, what: str, part: Part | None) -> None:
        if part is not None:
            self.fresh.append(((path, what), part))

    def _gradient(
        self, step: int | None, path: str, axis: int, mask: Tensor | None, gradient: Tensor
    ) -> None:
        if step != self.open or _batched(gradient):
            return
        part = squares_of(gradient, axis, mask)
        if part is not None:
            self.seen.setdefault((path, "gradient"), []).append(part)
        if not self.reached:
            # Parameters have their gradients when the pass is over; a hook for each costs more.
            torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)
        self.reached.add(path)

    def _after_backward(self) -> None:
        self.states += gradients_of({p: self.norms[p] for p in self.reached if p in self.norms})
        self.reached.clear()


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile has been at it, or at its forward, or at a function that it holds."""
    if module._compiled_call_impl is not None or hasattr(module, "_torchdynamo_orig_callable"):
        return True
    held = (module.forward, *vars(module).values())
    return any(callable(one) and hasattr(one, "_torchdynamo_orig_callable") for one in held)


def _recomputing() -> bool:
    """Whether autograd is going on: activation checkpointing runs a forward again."""
    return torch._C._current_graph_task_id() != -1


def _batched(gradient: Tensor) -> bool:
    """Whether it is of many losses at once (``is_grads_batched``): none of them is training's."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.is_legacy_batchedtensor(gradient)


def _mapped() -> bool:
    """Whether torch.func transforms the call: its values are no tensors outside of it."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functorch.peek_interpreter_stack() is not None
