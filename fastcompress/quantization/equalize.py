"""Cross-layer equalization and high-bias absorption (data-free quantization)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .channels import (
    Layer,
    all_finite,
    by_input,
    check_layer,
    in_channels,
    input_absmax,
    out_channels,
    output_absmax,
    scale_inputs,
    scale_outputs,
)

__all__ = ["absorb_high_bias", "equalize", "is_positively_homogeneous"]

#: f(s x) = s f(x) for every s > 0, element by element, so that a channel's scale passes through.
_HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU, nn.PReLU)


def is_positively_homogeneous(activation: nn.Module) -> bool:
    """Whether ``f(s x) = s f(x)`` for s > 0, so that equalization is exact across it (ReLU, but not ReLU6 or GELU)."""
    return isinstance(activation, _HOMOGENEOUS)


def _check_pairs(pairs: Sequence[tuple[nn.Module, nn.Module]]) -> list[tuple[Layer, Layer]]:
    firsts: set[int] = set()
    seconds: set[int] = set()
    owner: dict[int, Layer] = {}
    checked: list[tuple[Layer, Layer]] = []
    for index, (one, other) in enumerate(pairs):
        first = check_layer("equalize", f"pairs[{index}].first", one)
        second = check_layer("equalize", f"pairs[{index}].second", other)
        for role, layer, seen in (("first", first, firsts), ("second", second, seconds)):
            name = f"pairs[{index}].{role}"
            if id(layer) in seen:
                raise ValueError(
                    f"equalize: `{name}` is also the {role} layer of an earlier pair; a layer with two consumers or "
                    "two producers cannot be equalized pair by pair: leave it out"
                )
            seen.add(id(layer))
            if owner.setdefault(id(layer.weight), layer) is not layer:
                raise ValueError(f"equalize: `{name}` shares its weight with another layer of `pairs`; leave both out")
            if not bool(torch.isfinite(layer.weight).all()):
                raise ValueError(f"equalize: the weight of `{name}` holds NaN or infinity; repair the model first")
        if first is second:
            raise ValueError(f"equalize: `pairs[{index}]` is one layer twice")
        if out_channels(first) != in_channels(second):
            raise ValueError(
                f"equalize: `pairs[{index}]`: first has {out_channels(first)} output channels but second has "
                f"{in_channels(second)} input channels; they must follow each other channel by channel"
            )
        checked.append((first, second))
    return checked


def _pair_scale(first: Layer, second: Layer) -> Tensor:
    """s with ``s = sqrt(r1 r2) / r2``; 1 for channels that are dead on either side."""
    r1, r2 = output_absmax(first), input_absmax(second)
    alive = (r1 > 0) & (r2 > 0)
    # Two square roots: r1 / r2 itself may overflow.
    return torch.where(alive, r1, 1.0).sqrt() / torch.where(alive, r2, 1.0).sqrt()


def _apply_pair(first: Layer, second: Layer, scale: Tensor) -> bool:
    """Divide first's outputs and multiply second's inputs by `scale`; False, and nothing changed, on overflow."""
    inverse = 1.0 / scale.double()
    weight = scale_outputs(first.weight, inverse)
    bias = None if first.bias is None else scale_outputs(first.bias, inverse)
    after = scale_inputs(second, scale)
    if not all_finite([weight, after] if bias is None else [weight, after, bias]):
        return False
    first.weight.copy_(weight)
    if first.bias is not None and bias is not None:
        first.bias.copy_(bias)
    second.weight.copy_(after)
    return True


@torch.no_grad()
def equalize(
    pairs: Sequence[tuple[nn.Module, nn.Module]], iterations: int = 20, tolerance: float = 1e-3
) -> list[Tensor]:
    """Balance the weight ranges of consecutive layers, in place, without changing what the network computes.

    Channel i of a pair is divided by ``s_i = sqrt(r1_i r2_i) / r2_i`` in the first layer (weight and bias) and
    multiplied by it in the second, with r1, r2 the channel's largest weight magnitudes; afterwards they are equal.
    Overlapping pairs (a, b), (b, c) are repeated until the scales settle. Only exact if nothing but a positively
    homogeneous activation (``is_positively_homogeneous``) lies between the layers and nothing else reads the first
    one's output; the caller vouches for both. Fold batch normalisation first.

    Args:
        pairs: ``(first, second)`` of ``nn.Linear`` / ``nn.Conv2d``; groups and depthwise allowed on either side.
        iterations: most rounds over all pairs.
        tolerance: stop when no scale of a round differs from 1 by more than this.

    Returns:
        For each pair the float32 ``[channels]`` by which the first layer's outputs were divided in total (1 for dead
        channels).

    Raises:
        TypeError: another kind of layer.
        ValueError: channels that do not match, a layer that is first or second twice, shared weights, NaN/Inf
            weights, or scaled weights that would overflow their dtype. All but the last leave every layer untouched;
            the last leaves the pairs before it equalized, which is a correct network too.

    Example:
        >>> first, second = nn.Linear(4, 8), nn.Linear(8, 2)
        >>> equalize([(first, second)])[0].shape
        torch.Size([8])

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), §4.1.
    """
    if iterations < 1:
        raise ValueError(f"equalize: `iterations` must be at least 1, got {iterations}")
    layers = _check_pairs(pairs)
    totals = [torch.ones(out_channels(first), device=first.weight.device) for first, _ in layers]
    for _ in range(iterations):
        change = 0.0
        for index, (first, second) in enumerate(layers):
            scale = _pair_scale(first, second)
            if not _apply_pair(first, second, scale):
                raise ValueError(
                    f"equalize: scaling `pairs[{index}]` overflows {first.weight.dtype}; leave the pair out or convert "
                    "the model to float32"
                )
            totals[index] *= scale
            change = max(change, float((scale - 1.0).abs().max()))
        if change <= tolerance:
            break
    return totals


@torch.no_grad()
def absorb_high_bias(first: nn.Module, second: nn.Module, mean: Tensor, std: Tensor, sigmas: float = 3.0) -> Tensor:
    """Move the part of a layer's bias that its ReLU always lets through into the second layer's bias, in place.

    ``c = max(0, mean - sigmas * std)`` is subtracted from the first layer's bias and ``weight @ c`` added to the
    second's. Exact wherever the first layer's outputs are at least c (99.87% of a normal distribution at 3 sigmas),
    and for data as seen in calibration if `mean` is the smallest output observed and `std` zero. It narrows the range
    of the activation between them.

    Args:
        first: ``nn.Linear`` / ``nn.Conv2d`` with a bias, followed by ReLU, LeakyReLU or PReLU.
        second: ``nn.Linear`` / ``nn.Conv2d`` without padding (padded zeros would not have been shifted); gets a bias
            if it has none.
        mean: ``[channels]``, mean of the first layer's outputs before the activation: beta of a folded batch
            normalisation.
        std: ``[channels]``, their standard deviation: abs(gamma). Divide both by what ``equalize`` returned.
        sigmas: how far below the mean the bias may be cut.

    Returns:
        c, float64 ``[channels]``.

    Raises:
        TypeError: another kind of layer.
        ValueError: no bias to absorb, wrong lengths, negative or non-finite statistics, padding in `second`.

    Example:
        >>> first, second = nn.Linear(4, 8), nn.Linear(8, 2)
        >>> absorb_high_bias(first, second, torch.full((8,), 5.0), torch.ones(8))[0]
        tensor(2., dtype=torch.float64)

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019),
    §4.1, "Absorbing high biases".
    """
    first = check_layer("absorb_high_bias", "first", first)
    second = check_layer("absorb_high_bias", "second", second)
    channels = out_channels(first)
    if in_channels(second) != channels:
        raise ValueError(
            f"absorb_high_bias: `first` has {channels} output channels but `second` has {in_channels(second)} input "
            "channels"
        )
    if first.bias is None:
        raise ValueError("absorb_high_bias: `first` has no bias, so there is nothing to absorb; leave the pair out")
    if isinstance(second, nn.Conv2d) and second.padding != "valid" and tuple(second.padding) != (0, 0):
        raise ValueError(
            f"absorb_high_bias: `second` pads its input (padding={second.padding!r}), and padding is not shifted with "
            "the data; leave the pair out"
        )
    for name, value in (("mean", mean), ("std", std)):
        if tuple(value.shape) != (channels,) or not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"absorb_high_bias: `{name}` must be {channels} finite values, one per output channel of `first`, got "
                f"shape {list(value.shape)}"
            )
    if not bool((std >= 0).all()) or not sigmas >= 0:
        raise ValueError("absorb_high_bias: `std` and `sigmas` must not be negative")
    amount = (mean.double() - sigmas * std.double()).clamp(min=0.0).to(first.weight.device)
    view = by_input(second).double()
    moved = (view * amount.reshape(view.shape[0], 1, view.shape[2], 1)).sum(dim=(2, 3)).flatten()
    first.bias.copy_((first.bias.double() - amount).to(first.bias.dtype))
    weight = second.weight
    if second.bias is not None:
        second.bias.copy_((second.bias.double() + moved).to(weight.dtype))
    else:
        second.bias = nn.Parameter(moved.to(weight.dtype), requires_grad=weight.requires_grad)
    return amount
