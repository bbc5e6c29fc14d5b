"""The tensors of a checkpoint, taken out one by one with dtype, shape and values checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastcompress.errors import CheckpointError

__all__ = ["FLOATS", "INTEGERS", "TensorTable"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INTEGERS = (torch.int64, torch.int32)


class TensorTable:
    """Tensors by name, with the file that each came from; what is taken is gone, so its memory can be freed.

    Every fault is a `CheckpointError` that names file and tensor.
    """

    def __init__(self, function: str, tensors: Mapping[str, Tensor], origins: Mapping[str, Path], path: Path) -> None:
        self._function = function
        self._tensors = dict(tensors)
        self._origins = origins
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self, suffix: str) -> list[str]:
        """Modules that have a tensor called ``suffix``, in the order of the file."""
        return [name.removesuffix("." + suffix) for name in self._tensors if name.endswith("." + suffix)]

    def dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor; None if there is no such tensor."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor.dtype

    def error(self, name: str, problem: str) -> CheckpointError:
        """The one exception about this tensor."""
        where = self._origins.get(name, self._path)
        return CheckpointError(f"{self._function}: {where}: tensor {name!r:.200}: {problem}")

    def take(self, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...] | None) -> Tensor:
        """A tensor that must be there; None in the shape stands for any positive size, None as shape for one value.

        One value comes back as ``[1]``.
        """
        if name not in self._tensors:
            raise self.error(name, "is missing, its layer has other tensors of a quantized layer")
        tensor = self._tensors.pop(name)
        if tensor.dtype not in dtypes:
            allowed = " or ".join(_short(dtype) for dtype in dtypes)
            raise self.error(name, f"has dtype {_short(tensor.dtype)}, allowed: {allowed}")
        if shape is None and tensor.numel() == 1:
            return tensor.reshape(1)
        shape = (1,) if shape is None else shape
        fits = tensor.dim() == len(shape) and all(
            size > 0 if wanted is None else size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted_text = ", ".join("any" if wanted is None else str(wanted) for wanted in shape)
            raise self.error(name, f"has shape {list(tensor.shape)}, expected [{wanted_text}]")
        return tensor

    def take_finite(self, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int | None, ...] | None) -> Tensor:
        """`take`, and every value must be a finite number."""
        tensor = self.take(name, dtypes, shape)
        if not bool(torch.isfinite(tensor).all()):
            raise self.error(name, "holds NaN or infinity; the file is corrupt")
        return tensor

    def take_bias(self, module: str, out: int) -> Tensor | None:
        """The module's bias as float32 ``[out]``, or None."""
        name = module + ".bias"
        return self.take_finite(name, FLOATS, (out,)).to(torch.float32) if name in self._tensors else None

    def drop(self, name: str) -> None:
        """Take a tensor away unread, if there is one."""
        self._tensors.pop(name, None)

    def rest(self, orphans: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """What nobody took; tensors whose last name is in `orphans` belong to a layer that is not there."""
        for name in self._tensors:
            if name.rpartition(".")[2] in orphans:
                raise self.error(name, "belongs to a quantized layer, whose weight is missing")
        return dict(self._tensors)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
