"""Reading what modules inside a model return, by name, while the model runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcompress.models.choices import nearest

from .outputs import find_tensor
from .wrappers import modules_by_name

__all__ = ["Taps"]

_INDEXED = re.compile(r"(.*)\[(\d+)\]")


class Taps:
    """The outputs of named modules in one forward of a model; a context manager.

    Inside the ``with`` block forward hooks keep a copy of each output (a copy, because a following in-place module
    would overwrite it); the gradient flows through it. The hooks are gone afterwards, and nothing else of the model is
    touched. A module that runs several times keeps its last output. Values stay readable until the block is entered
    again.

    Args:
        model: any model; inside DistributedDataParallel or torch.compile the names are those of the model within.
        names: exact names as in ``named_modules()``. A module that returns a tuple gives its first tensor,
            ``"name[1]"`` its second entry; one that returns a ModelOutput gives ``last_hidden_state``.

    Raises:
        TypeError: ``model`` is no module, or a name no string.
        ValueError: there is no module of that name; the message lists near names.

    Example:
        >>> with Taps(model, ["layer3", "layer4"]) as taps:
        ...     output = model(x)
        >>> taps["layer4"].shape
        torch.Size([8, 64, 7, 7])
    """

    def __init__(self, model: nn.Module, names: str | Iterable[str], *, whose: str = "model") -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Taps: model must be a torch.nn.Module, got {type(model).__name__}")
        self._model = model
        self._whose = whose
        self.names: tuple[str, ...] = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
        self._values: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._active = False
        self._resolved()

    def __getitem__(self, name: str) -> Tensor:
        """The output of the module called ``name``.

        Raises:
            KeyError: ``name`` is not among the names given.
            RuntimeError: the module has not run inside the block.
        """
        if name not in self.names:
            raise KeyError(f"Taps: {name!r} is not tapped; tapped are {', '.join(map(repr, self.names))}")
        if name not in self._values:
            raise RuntimeError(
                f"Taps: {self._whose} module {name!r} did not run in the last forward; run the model inside the `with` "
                "block, tap a module that its forward calls, and compile a model only after its taps are in place"
            )
        return self._values[name]

    def __enter__(self) -> Taps:
        if self._active:
            raise RuntimeError("Taps: already recording; leave the `with` block before entering it again")
        self.clear()
        self.install()
        self._active = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._active = False
        self.remove()

    @property
    def values(self) -> dict[str, Tensor]:
        """Name → output of all modules that ran."""
        return dict(self._values)

    def clear(self) -> None:
        """Forget the values."""
        self._values.clear()

    def install(self) -> None:
        """Put the hooks in place, to record nothing until `recording`; for compiled models, which need them to stay."""
        if not self._handles:
            for name, module, index in self._resolved():
                self._handles.append(module.register_forward_hook(self._hook(name, index)))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @contextmanager
    def recording(self) -> Iterator[Taps]:
        """Like the ``with`` block, for hooks that `install` has put in place: they stay."""
        if self._active:
            raise RuntimeError("Taps: already recording; leave the `with` block before entering it again")
        self.clear()
        self._active = True
        try:
            yield self
        finally:
            self._active = False

    def _hook(self, name: str, index: int | None) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._active:
                return
            value = find_tensor(output) if index is None else _entry(output, index)
            if value is None:
                raise TypeError(
                    f"Taps: {self._whose} module {name!r} returned {type(output).__name__}, with no tensor there; "
                    "tap a module that returns a tensor, or give the place in its tuple as 'name[1]'"
                )
            self._values[name] = value.clone()

        return hook

    def _resolved(self) -> list[tuple[str, nn.Module, int | None]]:
        modules = modules_by_name(self._model)
        result: list[tuple[str, nn.Module, int | None]] = []
        for name in self.names:
            if not isinstance(name, str):
                raise TypeError(f"Taps: names must be module names, got {name!r:.80}")
            indexed = _INDEXED.fullmatch(name)
            if name in modules:
                result.append((name, modules[name], None))
            elif indexed is not None and indexed[1] in modules:
                result.append((name, modules[indexed[1]], int(indexed[2])))
            else:
                raise ValueError(f"Taps: the {self._whose} has no module {name!r:.200}{_near(name, modules)}")
        return result


def _entry(output: Any, index: int) -> Tensor | None:
    entries = tuple(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(entries, (tuple, list)) or index >= len(entries):
        return None
    value = entries[index]
    return value if isinstance(value, Tensor) else None


def _near(name: str, modules: Iterable[str]) -> str:
    names = [entry for entry in modules if entry]
    hint = nearest(name, names)
    if hint or not names:
        return hint or "; it has no modules inside"
    shown = ", ".join(map(repr, names[:5]))
    return f"; its modules are {shown}{', …' if len(names) > 5 else ''} (model.named_modules() lists them)"
