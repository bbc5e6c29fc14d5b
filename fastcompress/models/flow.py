"""What follows which module, learned from the identity of tensors while a model runs; the model is not traced.

Tracked modules get a ``forward`` of their own for the time of the recording. It tags the output tensor with the call
that made it. A dispatch mode sees every operator that touches a tagged tensor, so a consumer that is no module (an
addition, a view, a slice) is seen as well; and a tagged tensor that is still alive after the run was kept by somebody.
Both mean that the value is needed as it is, and that nothing may be fused behind the module that made it.

Instance attributes are used instead of forward hooks, because torch leaves its fused transformer path when a module has
hooks, and then other modules would run than in real use.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Flow", "FlowTracer", "InputKind", "Listener"]

_TAG = "_fastcompress_call"

#: Called as ``listener(name, module, input, output)`` after each call with one tensor in and one out
#: (an in-place module has overwritten its input by then).
Listener = Callable[[str, nn.Module, Tensor, Tensor], None]


@dataclass(frozen=True)
class InputKind:
    """What is remembered of one call's input: enough to make a similar tensor for measuring."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @classmethod
    def of(cls, x: Tensor) -> InputKind:
        channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return cls(tuple(x.shape), x.dtype, channels_last)

    def make(self, seed: int = 0) -> Tensor:
        """A tensor of this kind with normally distributed values."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


@dataclass(eq=False)
class _Call:
    """One running or finished call of a tracked module."""

    name: str
    source: _Call | None
    input: Tensor | None
    consumers: set[_Call | None] = field(default_factory=set)
    ops: int = 0
    output: weakref.ref[Tensor] | None = None


@dataclass
class Flow:
    """What was learned, summed over all calls; None in a set stands for "something that is no tracked module".

    Attributes:
        calls: module → number of calls.
        only_consumer: module → the modules that were, in some call, the one and only consumer of the output.
        consumers: module → everything that consumed the output.
        sources: module → the modules whose unchanged output was the input.
        inputs: module → how often each kind of input came.
        output_dims: module → numbers of dimensions of the outputs.
        weight_used_outside: modules whose parameters were read by an operator outside their own ``forward``.
    """

    calls: Counter[str] = field(default_factory=Counter)
    only_consumer: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    consumers: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    sources: dict[str, set[str | None]] = field(default_factory=lambda: defaultdict(set))
    inputs: dict[str, Counter[InputKind]] = field(default_factory=lambda: defaultdict(Counter))
    output_dims: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    weight_used_outside: set[str] = field(default_factory=set)

    def sole_next(self, name: str) -> str | None:
        """The module that alone consumed the output of ``name`` in every call, or None."""
        found = self.only_consumer.get(name, set())
        return next(iter(found)) if len(found) == 1 else None

    def sole_source(self, name: str) -> str | None:
        """The module whose output was the input of ``name`` in every call, or None."""
        found = self.sources.get(name, set())
        return next(iter(found)) if len(found) == 1 else None


class FlowTracer:
    """Records a `Flow` while a model runs.

    Args:
        modules: name → module to track; every module under one name only.
        root: the model; what it returns counts as kept, whatever happens to it outside.
        listeners: called after each call with its input and output, with the recording paused.

    Example:
        >>> tracer = FlowTracer(dict(model.named_children()), model)
        >>> with tracer.recording():
        ...     with tracer.run():
        ...         out = model(x)
        >>> tracer.flow.sole_next("conv1")
        'bn1'
    """

    def __init__(self, modules: Mapping[str, nn.Module], root: nn.Module, listeners: tuple[Listener, ...] = ()) -> None:
        self.flow = Flow()
        self._root = root
        self._returned: list[Any] = []
        self.listeners = listeners
        self._modules = modules
        self._stack: list[_Call] = []
        self._finished: list[_Call] = []
        self._paused = False
        self._owners: dict[int, set[str]] = defaultdict(set)
        for name, module in modules.items():
            for parameter in module.parameters(recurse=False):
                self._owners[id(parameter)].add(name)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Give the tracked modules their recording ``forward``; taken away again whatever happens."""
        saved: list[tuple[nn.Module, Any]] = []
        try:
            if self._root not in self._modules.values() and not isinstance(self._root, torch.jit.ScriptModule):
                saved.append((self._root, self._root.__dict__.get("forward")))
                self._root.__dict__["forward"] = self._keep_output(self._root.forward)
            for name, module in self._modules.items():
                saved.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = self._wrap(name, module)
            yield
        finally:
            for module, previous in saved:
                if previous is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = previous

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around one run of the model."""
        self._stack.clear()
        self._finished.clear()
        try:
            with _Watcher(self):
                yield
            self._settle()
        finally:
            self._returned.clear()

    @contextmanager
    def _pause(self) -> Iterator[None]:
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _keep_output(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            self._returned.append(output)
            return output

        return forward

    def _wrap(self, name: str, module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return original(*args, **kwargs)
            first = args[0] if args else next(iter(kwargs.values()), None)
            x = first if isinstance(first, Tensor) else None
            call = _Call(name, getattr(x, _TAG, None), x)
            before = None if x is None else InputKind.of(x)
            self._stack.append(call)
            try:
                output = original(*args, **kwargs)
            finally:
                self._stack.pop()
            self._leave(call, module, before, x, output)
            return output

        return forward

    def _leave(self, call: _Call, module: nn.Module, kind: InputKind | None, x: Tensor | None, output: Any) -> None:
        flow = self.flow
        flow.calls[call.name] += 1
        flow.sources[call.name].add(call.source.name if call.source is not None else None)
        if kind is not None:
            flow.inputs[call.name][kind] += 1
        call.input = None
        if not isinstance(output, Tensor):
            flow.only_consumer[call.name].add(None)
            flow.consumers[call.name].add(None)
            return
        flow.output_dims[call.name].add(output.dim())
        if call.ops:  # an Identity, or a Dropout at rest, hands its input on and is no consumer
            call.output = weakref.ref(output)
            setattr(output, _TAG, call)
            self._finished.append(call)
        if x is not None:
            with self._pause():
                for listener in self.listeners:
                    listener(call.name, module, x, output)

    def _saw(self, tensors: list[Any]) -> None:
        """An operator is about to read or write ``tensors``."""
        if self._paused:
            return
        top = self._stack[-1] if self._stack else None
        if top is not None:
            top.ops += 1
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            maker: _Call | None = getattr(tensor, _TAG, None)
            if maker is not None:
                maker.consumers.add(top if top is not None and tensor is top.input else None)
            owners = self._owners.get(id(tensor))
            if owners is not None and (top is None or top.name not in owners):
                self.flow.weight_used_outside |= owners

    def _settle(self) -> None:
        """After a run: who else holds a tensor keeps it for himself; then sum up."""
        if any(len(call.consumers) == 1 and None not in call.consumers and _alive(call) for call in self._finished):
            gc.collect()  # frames in reference cycles hold tensors too, and mean nothing
        for call in self._finished:
            if _alive(call):
                call.consumers.add(None)
            names = {consumer.name if consumer is not None else None for consumer in call.consumers}
            self.flow.consumers[call.name] |= names
            self.flow.only_consumer[call.name].add(next(iter(names)) if len(call.consumers) == 1 else None)
        self._finished.clear()


def _alive(call: _Call) -> bool:
    tensor = call.output() if call.output is not None else None
    return tensor is not None and getattr(tensor, _TAG, None) is call


class _Watcher(TorchDispatchMode):
    """Shows every operator's tensors to the tracer."""

    def __init__(self, tracer: FlowTracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._tracer._saw(tree_leaves((args, kwargs)))
        return func(*args, **kwargs)
