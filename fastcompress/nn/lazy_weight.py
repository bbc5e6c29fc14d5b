"""A float tensor that exists only when somebody reads its values."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["LazyWeight", "not_trainable"]


_REMEDY = "compressed weights are packed for the kernels, read-only and not trainable; train the float model"


def not_trainable(what: str, remedy: str = _REMEDY) -> NoReturn:
    """Raise the error for every attempt to train or write packed weights; `what` says what was attempted."""
    raise RuntimeError(f"{what}: {remedy}")


class LazyWeight(Tensor):
    """Reads like the float weight of a packed layer; every operation on it unpacks (and dequantizes) first.

    ``dtype``, ``shape`` and ``device`` cost nothing and values are never kept, so a layer holds its packed blob only.
    Writing to it or asking it for gradients raises RuntimeError with the remedy.

    Example:
        >>> layer = QuantLinear.from_float(torch.nn.Linear(8, 4), input_mode="dynamic")
        >>> layer.weight.dtype, layer.weight.shape
        (torch.float32, torch.Size([4, 8]))
        >>> layer.weight.abs().max()          # dequantized here, then forgotten
    """

    _read: Callable[[], Tensor]
    _remedy: str

    # Operations need no override by name: all of them arrive in __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        read: Callable[[], Tensor],
        size: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        remedy: str = _REMEDY,
    ) -> "LazyWeight":
        """Make a stand-in for what `read` returns when called (of `size`, `dtype` and `device`)."""
        self = Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device, requires_grad=False)
        self._read = read
        self._remedy = remedy
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            source = args[0]  # still no values needed; and writing to it must still fail
            return LazyWeight(source._read, source.shape, source.dtype, source.device, source._remedy)
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = kwargs.get(argument.name, args[position] if position < len(args) else None)
                written = next((leaf for leaf in tree_leaves(value) if isinstance(leaf, LazyWeight)), None)
                if written is not None:
                    not_trainable(f"{func} writes to a packed weight", written._remedy)
        args, kwargs = tree_map_only(LazyWeight, LazyWeight.materialize, (args, kwargs))
        return func(*args, **kwargs)

    def materialize(self) -> Tensor:
        """The values as an ordinary new tensor, contiguous, of this shape and dtype."""
        return self._read()

    @property
    def requires_grad(self) -> bool:
        """Always False; setting it to True raises RuntimeError."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> "LazyWeight":
        """Raise RuntimeError when `requires_grad` is true."""
        if requires_grad:
            not_trainable("weight.requires_grad = True", self._remedy)
        return self

    @property
    def data(self) -> "LazyWeight":
        """Itself: there is no other storage behind it. Assigning to it raises RuntimeError."""
        return self

    @data.setter
    def data(self, value: Tensor) -> None:
        not_trainable("weight.data = ...", self._remedy)

    def __setitem__(self, index: Any, value: Any) -> None:
        not_trainable("weight[...] = ...", self._remedy)

    def numpy(self, *, force: bool = False) -> Any:
        """The values as a numpy array (a copy)."""
        return self.materialize().numpy(force=force)

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.materialize().tolist()

    def __array__(self, dtype: Any = None) -> Any:
        return self.materialize().__array__(dtype) if dtype is not None else self.materialize().__array__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.materialize()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.materialize().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LazyWeight(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"
