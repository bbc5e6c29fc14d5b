"""What every packed layer shares: one packed buffer, canonical state, moves between dtypes and devices."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from ..ops import packing
from ..ops.canonical_sparse import SparseCanonical
from .lazy_weight import LazyWeight, not_trainable
from .state import Canonical, read_state, write_state

__all__ = ["Canonical", "PackedLayer"]

_DEVICES = ("cpu", "cuda")


class PackedLayer(nn.Module):
    """Base of the layers that hold one packed blob (buffer ``packed``) and nothing else.

    Attributes:
        packed: uint8 ``[bytes]``, made for this machine; not in the ``state_dict``, which holds canonical tensors.
        activation: fused activation function, ``"none"`` or another key of ``fastcompress.ops.ACTIVATIONS``.
        has_bias: whether there is a bias.
    """

    packed: Tensor
    activation: str
    has_bias: bool

    #: Whether the channels are stored in another order than the layer takes and gives them (`ReorderedLayer`).
    reordered = False

    #: Whether the operator takes a residual, an activation and other outputs, for whole-model plans.
    has_epilogue: ClassVar[bool] = True

    #: The classes of the canonical form.
    canonical_classes: ClassVar[tuple[type[Canonical], ...]]

    #: The operator, as compilers and autograd see it, and its bound C++ function: one Python frame less a call.
    operator: ClassVar[Any]
    bound: ClassVar[Any]

    #: The float layer that this one replaces, for messages.
    replaces: ClassVar[str] = "nn.Module"

    #: What to do instead of training or writing weights, for messages.
    remedy: ClassVar[str] = (
        "sparse weights are packed for the kernels, read-only and not trainable; train the masked model that "
        "fastcompress.prune returns and convert it again"
    )

    def __init__(self, c: Canonical, dtype: torch.dtype | None) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(c, self.canonical_classes):
            wanted = " or ".join(kind.__name__ for kind in self.canonical_classes)
            raise TypeError(
                f"{name}: expected a {wanted}, got {type(c).__name__}; {name}.from_float makes "
                "the layer from a float module"
            )
        if dtype is None:
            dtype = c.blocks.dtype if isinstance(c, SparseCanonical) else torch.float32
        if not dtype.is_floating_point:
            raise TypeError(f"{name}: `dtype` must be floating point, got {dtype}")
        self._dtype = dtype
        self._weight_shape = c.weight_shape
        self.register_buffer("packed", packing.pack(c), persistent=False)
        self._adopt(c)

    def _adopt(self, c: Canonical) -> None:
        """Take over what is not a tensor."""
        self.has_bias = c.bias is not None
        self.activation = c.activation

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
            lambda: torch.ops.fastcompress.dequantize(packed, field, size, dtype),
            size,
            dtype,
            packed.device,
            self.remedy,
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

    def with_activation(self, activation: str) -> Self:
        """A copy that applies another activation function behind the layer.

        Args:
            activation: a key of ``fastcompress.ops.ACTIVATIONS``.

        Raises:
            ValueError: no such activation.
        """
        result = copy.deepcopy(self)
        changed = replace(self.canonical(), activation=activation)
        result.packed = packing.pack(changed)
        result._adopt(changed)
        return result

    def run(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        out_scale: float = 1.0,
        out_zero_point: int = 0,
    ) -> Tensor:
        """The bare operator with all that its epilogue can do; plans of whole models (``graph/``) call it.

        Args:
            input: as in ``forward``.
            residual: added before the activation; of the output's shape, floating point.
            out_dtype: by default what ``forward`` gives; ``torch.uint8`` with `out_scale` and `out_zero_point` makes
                the input of the next int8 layer.

        Raises:
            TypeError, ValueError, RuntimeError: the operator's own; `out_zero_point` outside the type's range.

        What a layer that is `reordered` gives is in its stored order.
        """
        call = self.operator if torch.compiler.is_compiling() else self.bound
        packed, constants = self._buffers["packed"], self._constants(input)
        return cast(Tensor, call(input, packed, *constants, residual, out_dtype, out_scale, out_zero_point))

    def kernel_name(self) -> str:
        """The kernel that runs this layer: ``linear_w8a8_avx512vnni``, ``conv2d_w8a8_bsr16x4_avx512vnni`` and so on."""
        header = packing.info(self.packed)
        family, block = header["family"], header.get("block_size")
        if "kernel" in header:
            return str(header["kernel"])
        if header.get("weight_bits") == 4:
            family = family.replace("w8a8", "w4a8")
        if block is not None:
            family = f"{family.removesuffix('_bsr')}_bsr{block[0]}x{block[1]}"
        return f"{family}_{header['isa']}"

    def _forward_reordered(self, input: Tensor) -> Tensor:
        """The call of a layer that is `reordered`."""
        raise NotImplementedError

    def _traced(self, input: Tensor) -> Tensor:
        """The call as compilers and autograd should see it."""
        return cast(Tensor, self.operator(input, self.packed, *self._constants(input)))

    def _constants(self, input: Tensor) -> tuple[Any, ...]:
        """The operator's arguments behind the packed weights, up to the residual."""
        raise NotImplementedError

    def _diagnose(self, input: Tensor) -> None:
        """Raise TypeError or ValueError if the input is at fault."""
        raise NotImplementedError

    # -- training is refused -------------------------------------------------------------------------------------

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Raise RuntimeError when `requires_grad` is true: there is nothing trainable here."""
        if requires_grad:
            not_trainable(f"{type(self).__name__}.requires_grad_(True)", self.remedy)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "bias"):
            not_trainable(f"{type(self).__name__}.{name} = {type(value).__name__}(...)", self.remedy)
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
                f"{type(self).__name__}.to: compressed layers run on {' and '.join(_DEVICES)}, got device {device}; "
                f"keep {self.replaces} uncompressed there"
            )
        return packing.pack(self.canonical().to(device))

    def canonical_entries(self) -> tuple[str, ...]:
        """Names of the entries of the ``state_dict`` that come from the blob."""
        entries: dict[str, Any] = {}
        write_state(self.canonical(), entries, "")
        return tuple(entries)

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
        buffers = {name: value for name, value in self._buffers.items() if name != "packed"}
        return {**self.__dict__, "_buffers": buffers, "_canonical": self.canonical()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        c = state.pop("_canonical")
        super().__setstate__(state)
        self._buffers["packed"] = packing.pack(c)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # On the same machine the blob itself can be copied.
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        for key, value in self.__dict__.items():
            result.__dict__[key] = copy.deepcopy(value, memo)
        return result

    def _input_repr(self) -> list[str]:
        """What subclasses say about their input."""
        return []

    def _common_repr(self) -> str:
        parts = [f"bias={self.has_bias}", *self._input_repr()]
        if self.activation != "none":
            parts.append(f"activation={self.activation!r}")
        if self._dtype != torch.float32:
            parts.append(f"dtype={self._dtype}")
        return ", ".join(parts)
