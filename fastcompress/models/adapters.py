"""Subclasses of Conv2d and Linear with a ``forward`` of their own: which plain layer each one equals.

An adapter is only ever believed after its layer gave the same outputs as the module on calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcompress.nn.geometry import same_padding4

__all__ = ["Adapted", "Adapter", "adapt", "has_own_forward", "is_adaptable", "needs_adapter", "register_adapter"]

Padding4: TypeAlias = tuple[int, int, int, int]
Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Adapted:
    """A plain layer that computes the same as the adapted module.

    Attributes:
        layer: ``nn.Linear`` or ``nn.Conv2d`` (of exactly these types); it may share the module's parameters.
        padding: (top, bottom, left, right) zeros around the input in place of ``layer.padding``; None for the latter.
        note: a restriction the user should know of, such as the input sizes it holds for.
        same_padding: pad each input of a convolution by its own size, as TensorFlow's "SAME"; in place of ``padding``.
    """

    layer: nn.Linear | nn.Conv2d
    padding: Padding4 | None = None
    note: str = ""
    same_padding: bool = False

    @property
    def geometry(self) -> tuple[Any, ...]:
        """What else than the weight a convolution's time depends on; empty for a linear."""
        if not isinstance(self.layer, nn.Conv2d):
            return ()
        padding = "same" if self.same_padding else self.padding or self.layer.padding
        return (self.layer.stride, padding, self.layer.dilation, self.layer.groups)

    @property
    def padding_options(self) -> dict[str, Any]:
        """The arguments ``padding`` and ``same_padding`` of a convolution's ``from_float``; empty for a linear."""
        if not isinstance(self.layer, nn.Conv2d):
            return {}
        return {"padding": 0 if self.same_padding else self.padding, "same_padding": self.same_padding}

    def __call__(self, x: Tensor) -> Tensor:
        """The float output, as the module would give it."""
        conv = self.layer
        if not isinstance(conv, nn.Conv2d) or (self.padding is None and not self.same_padding):
            return cast(Tensor, conv(x))
        padding = self.padding
        if self.same_padding or padding is None:
            padding = same_padding4(x.shape[-2], x.shape[-1], conv.kernel_size, conv.stride, conv.dilation)
        top, bottom, left, right = padding
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


#: ``adapter(module, input_shapes)`` → the equal plain layer, or None when there is none for inputs of these shapes.
#: A ``ValueError`` says why in the report.
Adapter: TypeAlias = Callable[[nn.Module, Sequence[Shape]], "Adapted | None"]

_REGISTRY: dict[type[nn.Module], Adapter] = {}


def register_adapter(cls: type[nn.Module], adapter: Adapter) -> None:
    """Say which plain layer equals a module of class ``cls`` (or of a subclass without an adapter of its own).

    Args:
        cls: a module class, usually a subclass of ``nn.Conv2d`` or ``nn.Linear`` with a ``forward`` of its own.
        adapter: called with the module and the shapes of its inputs in calibration (empty when there were none).
            Returns an `Adapted`, or None when no plain layer does the same for these shapes; may raise ``ValueError``
            with the reason.

    `quantize` and `convert` compare the outputs on the data they run and skip the module, with a report, where the
    outputs differ.

    Raises:
        TypeError: ``cls`` is no module class or ``adapter`` cannot be called.

    Example:
        >>> class ScaledLinear(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x) * 2
        >>> def adapter(module, input_shapes):
        ...     plain = nn.Linear(module.in_features, module.out_features)
        ...     plain.weight, plain.bias = nn.Parameter(module.weight * 2), nn.Parameter(module.bias * 2)
        ...     return fc.Adapted(plain)
        >>> fc.register_adapter(ScaledLinear, adapter)
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"register_adapter: cls must be a class of torch.nn.Module, got {cls!r:.80}")
    if not callable(adapter):
        raise TypeError(
            f"register_adapter: adapter must be callable as adapter(module, input_shapes), got {adapter!r:.80}"
        )
    _REGISTRY[cls] = adapter


def has_own_forward(module: nn.Module) -> bool:
    """Whether a Linear or Conv2d computes something else than torch's own."""
    cls: Any = type(module)
    if isinstance(module, nn.Conv2d):
        return cls.forward is not nn.Conv2d.forward or cls._conv_forward is not nn.Conv2d._conv_forward
    return cls.forward is not nn.Linear.forward


def needs_adapter(module: nn.Module) -> bool:
    """Whether a module is no plain linear or convolution, so that it takes an adapter to know what it computes."""
    return not isinstance(module, (nn.Linear, nn.Conv2d)) or has_own_forward(module)


def _find(module: nn.Module) -> Adapter | None:
    for cls in type(module).__mro__:
        if cls in _REGISTRY:
            return _REGISTRY[cls]
    if isinstance(module, nn.Conv2d) and has_own_forward(module) and "same" in type(module).__name__.lower():
        return _same_padding
    if _is_transposed_linear(module):
        return _transposed_linear
    return None


def is_adaptable(module: nn.Module) -> bool:
    """Whether an adapter is registered, or built in, for the module's class."""
    return _find(module) is not None


def adapt(module: nn.Module, examples: Sequence[tuple[Tensor, Tensor]]) -> Adapted | str:
    """The checked plain equivalent of ``module``, or the reason why there is none.

    Args:
        examples: (input, output) pairs of the module, from calibration; none: a linear is tried on random inputs.
    """
    name = type(module).__name__
    adapter = _find(module)
    if adapter is None:
        return f"{name} has a forward of its own and no adapter; tell how it works with fastcompress.register_adapter"
    try:
        adapted = adapter(module, [tuple(x.shape) for x, _ in examples])
    except ValueError as refusal:
        return f"the adapter for {name} refused: {refusal}"
    if adapted is None:
        return f"the adapter for {name} found no plain layer that does the same for the sizes seen"
    if type(adapted.layer) not in (nn.Linear, nn.Conv2d):
        return f"the adapter for {name} returned a {type(adapted.layer).__name__}, allowed are nn.Linear and nn.Conv2d"
    with torch.no_grad():
        if not examples and isinstance(adapted.layer, nn.Linear):
            x = torch.randn(4, adapted.layer.in_features, dtype=adapted.layer.weight.dtype)
            examples = [(x, module(x))]
        for x, expected in examples:
            error = _difference(adapted(x), expected)
            if error is not None:
                return f"the adapter for {name} is wrong on calibration data: {error}"
        if adapted.same_padding:
            return _wrong_at_other_sizes(module, adapted, examples) or adapted
    return adapted


def _wrong_at_other_sizes(module: nn.Module, adapted: Adapted, examples: Sequence[tuple[Tensor, Tensor]]) -> str | None:
    """Calibration shows one size or few; padding by the input's size must hold for every remainder of the stride."""
    for more in range(1, max(cast(nn.Conv2d, adapted.layer).stride)):
        x = F.pad(examples[0][0], (0, more, 0, more), value=1.0)
        try:
            error = _difference(adapted(x), module(x))
        except Exception as refusal:
            error = f"{type(refusal).__name__}: {refusal}"
        if error is not None:
            return (
                f"the adapter for {type(module).__name__} is wrong for inputs of {x.shape[-2]}×{x.shape[-1]}: {error}"
            )
    return None


def _difference(found: Tensor, expected: Tensor) -> str | None:
    if found.shape != expected.shape:
        return f"output shape {list(found.shape)}, the module gives {list(expected.shape)}"
    # Another summation order is allowed, another function is not: relative to the largest output.
    bound = 1e-4 if expected.dtype == torch.float32 else 2e-2
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((found.float() - expected.float()).abs().max()) if expected.numel() else 0.0
    if error <= bound * max(largest, 1e-6):
        return None
    return f"outputs differ by {error:.3g}, the largest is {largest:.3g}"


def _plain_conv(module: nn.Conv2d) -> nn.Conv2d:
    """A plain convolution that shares ``module``'s parameters."""
    plain = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        cast(tuple[int, int], tuple(module.kernel_size)),
        cast(tuple[int, int], tuple(module.stride)),
        0,
        cast(tuple[int, int], tuple(module.dilation)),
        module.groups,
        module.bias is not None,
        device="meta",
    )
    weight = module.weight  # a masked one is computed anew with every reading and is no parameter
    plain.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach(), requires_grad=False)
    plain.bias = module.bias
    return plain.train(module.training)


def _same_padding(module: nn.Module, input_shapes: Sequence[Shape]) -> Adapted | None:
    """TensorFlow-style "same" convolutions: padding fixed at construction, or computed from each input."""
    conv = cast(nn.Conv2d, module)
    own: Padding4 = (0, 0, 0, 0)
    if not isinstance(conv.padding, str):
        vertical, horizontal = conv.padding
        own = (vertical, vertical, horizontal, horizontal)
    fixed = getattr(conv, "static_padding", None)
    if fixed is not None:
        extra: Padding4 = (0, 0, 0, 0)
        if isinstance(fixed, nn.ZeroPad2d):
            left, right, top, bottom = fixed.padding
            extra = (top, bottom, left, right)
        t, b, le, r = (a + e for a, e in zip(own, extra, strict=True))
        return Adapted(_plain_conv(conv), (t, b, le, r))
    if not input_shapes:
        raise ValueError("its padding depends on the input's size, and it never ran in calibration")
    plain = _plain_conv(conv)
    if max(plain.stride) == 1:  # the same for every size
        return Adapted(plain, same_padding4(1, 1, plain.kernel_size, plain.stride, plain.dilation))
    return Adapted(plain, same_padding=True)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Hugging Face's ``Conv1D``: a linear whose weight is stored ``[in, out]``."""
    weight = getattr(module, "weight", None)
    return (
        type(module).__name__ == "Conv1D"
        and type(module).__module__.startswith("transformers.")
        and isinstance(weight, Tensor)
        and weight.dim() == 2
        and getattr(module, "nf", None) == weight.shape[1]
    )


def _transposed_linear(module: nn.Module, input_shapes: Sequence[Shape]) -> Adapted | None:
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
    plain = nn.Linear(weight.shape[0], weight.shape[1], bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return Adapted(plain.train(module.training))
