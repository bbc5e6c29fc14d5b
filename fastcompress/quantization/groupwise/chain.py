"""The model's chain of blocks: modules that run one after the other, each on the hidden state of the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Chain", "Replay", "find_chain", "hidden_of", "without_cache"]

#: Keyword arguments that hold what an earlier call left behind; a block that runs again must not see it.
_CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")

_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Chain:
    """Blocks in the order in which they run.

    Attributes:
        name: of the container, below the model.
        blocks: its entries.
        slot: where a block takes the hidden state: a position or a keyword.
        uniform: whether all blocks get the same other arguments.
        before: names of linears that ran before the first block.
    """

    name: str
    blocks: tuple[nn.Module, ...]
    slot: int | str
    uniform: bool
    before: frozenset[str] = frozenset()


class _Stop(BaseException):
    """The first block has been called: nothing more is wanted of the model."""


@dataclass
class _Seen:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


def find_chain(model: nn.Module, layers: Mapping[str, nn.Linear], run: Callable[[], Any]) -> Chain | None:
    """The chain that holds the most of ``layers``; None when nothing in the model is one.

    An entry must run exactly once, take the very tensor that the one before returned, and give the same result when it
    is called again with what it got: that is tried with the first.

    Args:
        run: runs the model on the first batch.
    """
    containers = {name: list(module) for name, module in model.named_modules() if _is_container(module)}
    entries = {entry for blocks in containers.values() for entry in blocks}
    calls: dict[nn.Module, list[_Seen]] = {entry: [] for entry in entries}
    ran: list[nn.Module] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ran.append(module)
        if module in entries:
            calls[module].append(_Seen(args, kwargs))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module][-1].output = output

    with ExitStack() as stack:
        for module in {*entries, *layers.values()}:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        for module in entries:
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        run()
    names = {id(layer): name for name, layer in layers.items()}
    best: tuple[int, int] = (0, 0)
    found: Chain | None = None
    for name, blocks in containers.items():
        held = sum(1 for block in blocks for module in block.modules() if id(module) in names)
        seen = [calls[block] for block in blocks]
        if (held, len(blocks)) <= best or any(len(s) != 1 for s in seen):
            continue
        slot = _slot([s[0] for s in seen])
        if slot is None or not _repeats(blocks[0], seen[0][0]):
            continue
        first = ran.index(blocks[0])
        early = frozenset(names[id(module)] for module in ran[:first] if id(module) in names)
        others = [_without(_fresh(s[0].args, s[0].kwargs), slot) for s in seen]
        uniform = all(_same(call, others[0]) for call in others[1:])
        best, found = (held, len(blocks)), Chain(name, tuple(blocks), slot, uniform, early)
    return found


def _is_container(module: nn.Module) -> bool:
    """A list of modules that have modules themselves: bare layers in a row are no blocks."""
    return (
        isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) > 1
        and len(set(module)) == len(module)
        and all(next(entry.children(), None) is not None for entry in module)
    )


def hidden_of(output: Any) -> Tensor | None:
    """The hidden state that a block returned: its output, or the first of several."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def _slot(seen: Sequence[_Seen]) -> int | str | None:
    """Where every block but the first got what the one before returned."""
    slots: set[int | str] = set()
    for before, call in pairwise(seen):
        hidden = hidden_of(before.output)
        places: list[int | str] = [i for i, value in enumerate(call.args) if value is hidden]
        places += [key for key, value in call.kwargs.items() if value is hidden]
        if hidden is None or len(places) != 1:
            return None
        slots.add(places[0])
    slot = next(iter(slots))
    first = seen[0]
    holder = first.kwargs.get(slot) if isinstance(slot, str) else first.args[slot] if slot < len(first.args) else None
    return slot if len(slots) == 1 and isinstance(holder, Tensor) else None


def _repeats(block: nn.Module, seen: _Seen) -> bool:
    args, kwargs = _fresh(seen.args, seen.kwargs)
    again, before = hidden_of(block(*args, **kwargs)), hidden_of(seen.output)
    return again is not None and before is not None and torch.equal(again, before)


def _fresh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    """The arguments without caches of earlier calls."""
    kept = {key: None if key in _CACHES else value for key, value in kwargs.items()}
    return args, {**kept, "use_cache": False} if "use_cache" in kept else kept


def _without(call: _Call, slot: int | str) -> _Call:
    args, kwargs = call
    if isinstance(slot, int):
        args = (*args[:slot], None, *args[slot + 1 :])
    else:
        kwargs = {**kwargs, slot: None}
    return args, kwargs


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a is b or (type(a) is type(b) and isinstance(a, bool | int | float | str) and bool(a == b))


@dataclass
class Replay:
    """All batches on their way through a chain: the hidden state of each, and what else the blocks get.

    Attributes:
        chain: the chain.
        hidden: of each batch, the input of the next block.
        calls: of each batch, the other arguments of every block, or (uniform) of the first.
    """

    chain: Chain
    hidden: list[Tensor] = field(default_factory=list)
    calls: list[list[_Call]] = field(default_factory=list)

    def capture(self, run: Callable[[], Any]) -> None:
        """Take the arguments of the blocks from one run of the model; it ends at the first block if they are alike."""
        chain, got = self.chain, list[_Call]()

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = _fresh(args, kwargs)
            if not got:
                value = call[1][chain.slot] if isinstance(chain.slot, str) else call[0][chain.slot]
                self.hidden.append(value.detach())
            got.append(_without(call, chain.slot))
            if chain.uniform:
                raise _Stop

        with ExitStack() as stack:
            for block in chain.blocks[:1] if chain.uniform else chain.blocks:
                stack.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            with suppress(_Stop):
                run()
        self.calls.append(got)

    def run(self, index: int, batch: int) -> Any:
        """Call block ``index`` on the hidden state of a batch."""
        args, kwargs = self.calls[batch][0 if self.chain.uniform else index]
        hidden, slot = self.hidden[batch], self.chain.slot
        if isinstance(slot, int):
            args = (*args[:slot], hidden, *args[slot + 1 :])
        else:
            kwargs = {**kwargs, slot: hidden}
        return self.chain.blocks[index](*args, **kwargs)

    def advance(self, index: int) -> None:
        """Replace each hidden state by what block ``index`` makes of it."""
        for batch in range(len(self.hidden)):
            made = hidden_of(self.run(index, batch))
            assert made is not None, "it was a tensor when the chain was found"
            self.hidden[batch] = made.detach()

    def forget(self) -> None:
        """Free the hidden states and arguments: the last block is done."""
        self.hidden.clear()
        self.calls.clear()


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """A ``transformers`` model that keeps no key-value cache for a while."""
    config = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is None:
        yield
        return
    try:
        config.use_cache = False  # type: ignore[union-attr]
        yield
    finally:
        config.use_cache = before  # type: ignore[union-attr]
