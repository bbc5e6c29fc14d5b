"""What every packed linear layer shares: the call."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from ..ops import checks
from .base import Canonical, PackedLayer
from .calls import below_autograd, is_compiling, is_grad_enabled, is_transforming, raise_blob_error, refuse_transforms

__all__ = ["PackedLinear"]


class PackedLinear(PackedLayer):
    """Base of the layers that replace ``nn.Linear``.

    Attributes:
        in_features, out_features: as in torch.
    """

    replaces = "nn.Linear"

    def __init__(self, c: Canonical, *, dtype: torch.dtype | None = None) -> None:
        if len(c.weight_shape) != 2:
            raise ValueError(f"{type(self).__name__}: `weight` must be [out, in], got shape {list(c.weight_shape)}")
        super().__init__(c, dtype)
        self.out_features, self.in_features = c.weight_shape

    @classmethod
    def from_canonical(cls, c: Canonical, *, dtype: torch.dtype | None = None) -> Self:
        """Make a layer from canonical tensors of `canonical_classes`.

        Args:
            dtype: logical dtype of ``weight``; by default the values' own, float32 for int8.

        Raises:
            TypeError, ValueError: see ``fastcompress.ops.pack``.
        """
        return cls(c, dtype=dtype)

    @classmethod
    def _accept(cls, module: nn.Linear) -> None:
        """Raise TypeError unless `module` computes what ``nn.Linear`` does (a mask on its weight is fine)."""
        if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
            raise TypeError(
                f"{cls.__name__}.from_float: `module` must be an nn.Linear with nn.Linear's forward, got "
                f"{type(module).__name__}; copy its weights into an nn.Linear that computes the same"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer: ``[..., in_features]`` to ``[..., out_features]``."""
        if self.reordered:
            return self._forward_reordered(input)
        if is_compiling():
            return self._traced(input)
        try:
            if is_transforming():
                refuse_transforms(type(self).__name__, input)
                return self._traced(input)
            if input.requires_grad and is_grad_enabled():
                return self._traced(input)
            with below_autograd():
                return self.bound(input, self._buffers["packed"], self.out_features)
        except Exception as error:
            self._diagnose(input)
            raise_blob_error(error)
            raise

    def _constants(self, input: Tensor) -> tuple[Any, ...]:
        return (self.out_features,)

    def _diagnose(self, input: Tensor) -> None:
        """Raise TypeError or ValueError if the input is at fault; the operator itself can only raise RuntimeError."""
        name = type(self).__name__
        checks.check_tensor(name, "input", input)
        checks.check_linear(input, self.packed, self.out_features, op=self.operator._schema.name.split("::")[1])
        if input.shape[-1] != self.in_features:
            raise ValueError(
                f"{name}: `input` has {input.shape[-1]} features (shape {list(input.shape)}), the layer takes "
                f"in_features={self.in_features}"
            )

    def extra_repr(self) -> str:
        """The constructor's view, for ``print(model)``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._common_repr()}"
