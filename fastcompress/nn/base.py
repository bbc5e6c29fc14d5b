"""What every quantized layer shares: one packed buffer, canonical state, moves between dtypes and devices."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..errors import PackedBlobError
from ..ops import packing
from ..ops.canonical import W8A8Canonical
from .lazy_weight import LazyWeight, not_trainable
from .state import Canonical, read_state, write_state

__all__ = [
    "Canonical",
    "QuantizedLayer",
    "below_autograd",
    "is_grad_enabled",
    "is_transforming",
    "raise_blob_error",
    "refuse_transforms",
]

#: Context in which operators skip autograd: the backward formula is Python and costs 4 µs a call even when no gradient
#: is wanted (the rest of a layer call takes 3.5 µs), this context 0.5 µs. Tracing and profiling still see the call.
below_autograd: Any = getattr(torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext)

is_grad_enabled = torch.is_grad_enabled

_peek_interpreter: Any = torch._C._functorch.peek_interpreter_stack


def is_transforming() -> bool:
    """Whether forward-mode AD or a ``torch.func`` transform is active: below autograd its tangents would be lost."""
    return _peek_interpreter() is not None or forward_ad._current_level >= 0


def refuse_transforms(layer: str, input: Tensor) -> None:
    """Raise RuntimeError where a tangent would silently be zero or a transform has no formula; ``vmap`` is fine."""
    interpreter = _peek_interpreter()
    func = interpreter is not None and interpreter.key() != torch._C._functorch.TransformType.Vmap
    if func or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(input).tangent is not None):
        raise RuntimeError(
            f"{layer}: forward-mode AD and torch.func.grad/vjp/jvp do not pass through int8 layers; use "
            "tensor.backward() or torch.autograd.grad for gradients of the input, or the float model"
        )


def raise_blob_error(error: Exception) -> None:
    """Raise PackedBlobError when `error` is the operator's complaint about its packed weights."""
    if isinstance(error, RuntimeError) and str(error).startswith("packed weights:"):
        raise PackedBlobError(str(error)) from error


_DEVICES = ("cpu", "cuda")


class QuantizedLayer(nn.Module):
    """Base of the layers that hold one packed blob (buffer ``packed``) and nothing else.

    Attributes:
        packed: uint8 ``[bytes]``, made for this machine; not in the ``state_dict``, which holds canonical tensors.
        activation: fused activation function, ``"none"`` or another key of ``fastcompress.ops.ACTIVATIONS``.
        input_mode: ``"static"``, ``"dynamic"`` or ``"dynamic_symmetric"``.
        input_scale: float, of static activations; 1.0 when dynamic.
        input_zero_point: int in [0, 255], of static activations; 0 when dynamic.
    """

    packed: Tensor
    activation: str
    input_mode: str
    input_scale: float
    input_zero_point: int

    #: The class of the canonical form.
    canonical_class: ClassVar[Callable[..., Canonical]] = W8A8Canonical

    #: The float layer that this one replaces, for messages.
    replaces: ClassVar[str] = "nn.Module"

    def __init__(self, c: Canonical, dtype: torch.dtype) -> None:
        super().__init__()
        if not dtype.is_floating_point:
            raise TypeError(f"{type(self).__name__}: `dtype` must be floating point, got {dtype}")
        self._dtype = dtype
        self._weight_shape = c.weight_shape
        self.register_buffer("packed", packing.pack(c), persistent=False)
        self._adopt(c)

    def _adopt(self, c: Canonical) -> None:
        """Take over what is not a tensor."""
        self.has_bias = c.bias is not None
        self.activation = c.activation
        self.input_mode = c.input_mode
        self.input_scale = c.input_scale
        self.input_zero_point = c.input_zero_point

    # -- weights -------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> Tensor:
        """The weight as floats of the logical dtype, dequantized when its values are read."""
        return self._lazy("weight", self._weight_shape)

    @property
    def bias(self) -> Tensor | None:
        """The bias in the logical dtype, read from the blob when its values are, or None."""
        return self._lazy("bias", self._weight_shape[:1]) if self.has_bias else None

    def _lazy(self, field: str, size: tuple[int, ...]) -> Tensor:
        packed, dtype = self._buffers["packed"], self._dtype
        assert packed is not None
        if torch.compiler.is_compiling():  # a traced graph needs an operator, not a tensor subclass made inside it
            return torch.ops.fastcompress.dequantize(packed, field, size, dtype)
        return LazyWeight(
            lambda: torch.ops.fastcompress.dequantize(packed, field, size, dtype), size, dtype, packed.device
        )

    def dequantize(self) -> Tensor:
        """The weight as an ordinary float tensor of the logical dtype and shape (new memory)."""
        return self.canonical().dequantize().to(self._dtype)

    def canonical(self) -> Canonical:
        """The portable tensors behind this layer, bit for bit.

        Raises:
            RuntimeError: the blob is corrupt, or needs native kernels that are not loaded.
        """
        return packing.unpack(self.packed)

    def repack(self) -> Self:
        """Pack the weights again for the instruction set chosen now (after ``set_isa``); returns self.

        Raises:
            RuntimeError: the blob is corrupt, or needs native kernels that are not loaded.
        """
        self.packed = packing.pack(self.canonical())
        return self

    def kernel_name(self) -> str:
        """The kernel that runs this layer, ``<op>_<isa>``, for example ``linear_w8a8_avx512vnni``."""
        header = packing.info(self.packed)
        return str(header.get("kernel") or f"{header['family']}_{header['isa']}")

    # -- training is refused -------------------------------------------------------------------------------------

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Raise RuntimeError when `requires_grad` is true: there is nothing trainable here."""
        if requires_grad:
            not_trainable(f"{type(self).__name__}.requires_grad_(True)")
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            not_trainable(f"{type(self).__name__}.{name} = {type(value).__name__}(...)")
        super().__setattr__(name, value)

    # -- dtype and device ----------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        packed = self.packed
        probe = fn(torch.empty(0, dtype=self._dtype, device=packed.device))
        if probe.device == packed.device:
            moved = fn(packed)  # shares or pins memory; a cast must not touch the bytes
            moved = moved if moved.dtype == torch.uint8 else packed
        else:
            moved = self._packed_on(probe.device)
        self.packed = moved
        if probe.dtype.is_floating_point:
            self._dtype = probe.dtype
        return self

    def _packed_on(self, device: torch.device) -> Tensor:
        if device.type not in _DEVICES:
            raise ValueError(
                f"{type(self).__name__}.to: quantized layers run on {' and '.join(_DEVICES)}, got device {device}; "
                f"keep {self.replaces} unquantized there"
            )
        return packing.pack(self.canonical().to(device))

    # -- state ---------------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        write_state(self.canonical(), destination, prefix)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = read_state(self.canonical(), state_dict, prefix, strict, missing_keys, unexpected_keys, error_msgs)
        if found is not None:
            self.packed = packing.pack(found)
            self._adopt(found)

    def __getstate__(self) -> dict[str, Any]:
        # Pickles travel between machines, blobs do not: what is pickled is canonical.
        c = self.canonical()
        buffers = {name: value for name, value in self._buffers.items() if name != "packed"}
        return {**self.__dict__, "_buffers": buffers, "_canonical": {f.name: getattr(c, f.name) for f in fields(c)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        c = type(self).canonical_class(**state.pop("_canonical"))
        super().__setstate__(state)
        self._buffers["packed"] = packing.pack(c)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # On the same machine the blob itself can be copied.
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        for key, value in self.__dict__.items():
            result.__dict__[key] = copy.deepcopy(value, memo)
        return result

    def _common_repr(self) -> str:
        parts = [f"bias={self.has_bias}", f"input_mode={self.input_mode!r}"]
        if self.input_mode == "static":
            parts.append(f"input_scale={self.input_scale:.6g}, input_zero_point={self.input_zero_point}")
        if self.activation != "none":
            parts.append(f"activation={self.activation!r}")
        if self._dtype != torch.float32:
            parts.append(f"dtype={self._dtype}")
        return ", ".join(parts)
