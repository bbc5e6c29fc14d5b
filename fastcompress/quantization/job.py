"""One layer on its way to int8 or four bits: what is known about it, and the layers made from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcompress.config import QuantConfig
from fastcompress.models.adapters import Adapted
from fastcompress.models.copying import plain_copy
from fastcompress.models.speed import Inputs, SpeedCase, Verdict, choose_inputs, default_inputs
from fastcompress.models.targets import Candidate
from fastcompress.nn import (
    GroupQuantLinear,
    QuantConv2d,
    QuantizedLayer,
    QuantLinear,
    SparseQuantConv2d,
    SparseQuantLinear,
)
from fastcompress.nn.mask import only_masked
from fastcompress.nn.orders import NATURAL, Orders
from fastcompress.ops import W4Canonical, W8Canonical
from fastcompress.quantization.bias_correction import ChannelMean, corrected_bias, expected_output_shift
from fastcompress.quantization.fixed import FixedScales
from fastcompress.quantization.fold import fold_batchnorm
from fastcompress.quantization.fuse import Fusion
from fastcompress.quantization.group_layer import grouped_layer
from fastcompress.quantization.observers import Observer, make_observer
from fastcompress.quantization.qparams import quantize_weight, weight_scales
from fastcompress.quantization.smooth import ChannelAbsMax

__all__ = ["Job"]


@dataclass(eq=False)
class Job:
    """One layer that is (perhaps) going to be quantized.

    Attributes:
        candidate: the module and its names.
        adapted: the plain layer that equals it.
        inputs: what it is measured on.
        fusion: what follows it and is taken over.
        verdict: what measuring said; None when it was not measured.
        block, orders: of the int8 layer, if it is block-sparse; None for the dense one.
        layer: the float layer with BatchNorm folded in and, later, equalized or smoothed weights; a copy.
        input_divisor: per input channel, what equalization or smoothing divides the input by; None for nothing.
        fixed: the scales that the quantized layer must have; None where they are found.
        weights: what the algorithm of a scheme with groups found; None where each is rounded to the nearest.
        observer, mean, absmax: watch the (divided) input during calibration.
    """

    candidate: Candidate
    adapted: Adapted
    inputs: Inputs = ()
    fusion: Fusion = field(default_factory=Fusion)
    verdict: Verdict | None = None
    block: tuple[int, int] | None = None
    orders: Orders = NATURAL
    layer: nn.Linear | nn.Conv2d | None = None
    input_divisor: Tensor | None = None
    fixed: FixedScales | None = None
    weights: W4Canonical | W8Canonical | None = None
    observer: Observer | None = None
    mean: ChannelMean | None = None
    absmax: ChannelAbsMax | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def plain(self) -> nn.Linear | nn.Conv2d:
        """The equal plain layer, unfolded."""
        return self.adapted.layer

    @property
    def channel_dim(self) -> int:
        """The input's channel dimension."""
        return -3 if isinstance(self.plain, nn.Conv2d) else -1

    def find_inputs(self, seen: Mapping[str, Any] | None) -> None:
        """Choose what to measure on: inputs seen, else (for linears) 1 and 128 tokens."""
        counter = None if seen is None else seen.get(self.name)
        if counter:
            self.inputs = choose_inputs(counter)
        elif isinstance(self.plain, nn.Linear):
            self.inputs = default_inputs(self.plain.in_features, self.plain.weight.dtype)

    def start_observing(self, config: QuantConfig) -> None:
        """Fresh observers for the next calibration pass."""
        if config.input_mode == "static":
            self.observer = make_observer(config.observer, **config.observer_options)
        if config.bias_correction:
            self.mean = ChannelMean(self.channel_dim)
        if config.smoothquant is not None:
            self.absmax = ChannelAbsMax(self.channel_dim)

    def observe(self, x: Tensor) -> None:
        """Take one input into account."""
        if self.input_divisor is not None:
            shape = [1] * x.dim()
            shape[self.channel_dim] = -1
            x = x / self.input_divisor.to(x.dtype).reshape(shape)
        for watcher in (self.observer, self.mean, self.absmax):
            if watcher is not None:
                watcher.update(x)

    def fold(self, modules: Mapping[str, nn.Module]) -> None:
        """Make the float layer that the int8 one is quantized from: a copy, with the BatchNorm folded in."""
        self.layer = plain_copy(self.plain)
        if self.fusion.norm is not None:
            weight, bias = fold_batchnorm(self.plain, modules[self.fusion.norm])
            self.layer.weight = nn.Parameter(weight, requires_grad=False)
            self.layer.bias = nn.Parameter(bias, requires_grad=False)
        if self.fixed is not None:
            # In float32, in which it is rounded: another dtype would change the integers.
            self.layer.float().weight = nn.Parameter(self.fixed.weight, requires_grad=False)

    def quantized(self, config: QuantConfig) -> QuantizedLayer | GroupQuantLinear:
        """The quantized layer.

        Raises:
            ValueError: the observer saw nothing, or the weights cannot be quantized.
        """
        layer = self.layer
        assert layer is not None
        if config.kind.grouped:
            assert isinstance(layer, nn.Linear)
            weights = self.weights if self.fixed is None else self.fixed.in_groups(layer.bias)
            return grouped_layer(layer, config, self.fusion.activation, weights).to(self.plain.weight.dtype)
        scale, zero_point = 1.0, 0
        if self.observer is not None:
            scale, zero_point = self.observer.qparams(symmetric=config.symmetric_activations)
        if self.fixed is not None:
            scale, zero_point = self.fixed.input_scale, self.fixed.input_zero_point
            weight_scale = self.fixed.weight_scale
        else:
            weight_scale = weight_scales(layer.weight, config.weight_observer, self.weight_bits(config))
        if self.mean is not None:
            layer = _bias_corrected(layer, weight_scale, self.mean.value, self.weight_bits(config))
        options: dict[str, Any] = {
            "input_mode": config.input_mode,
            "input_scale": scale,
            "input_zero_point": zero_point,
            "activation": self.fusion.activation,
            "weight_scale": weight_scale,
        }
        if self.block is not None:
            options |= {"block_size": self.block, "orders": self.orders}
        if isinstance(layer, nn.Conv2d):
            conv_class = QuantConv2d if self.block is None else SparseQuantConv2d
            if self.block is None:
                options["weight_bits"] = self.weight_bits(config)
            made: QuantizedLayer = conv_class.from_float(layer, **self.adapted.padding_options, **options)
        else:
            linear_class = QuantLinear if self.block is None else SparseQuantLinear
            made = linear_class.from_float(layer, **options)
        return made.to(self.plain.weight.dtype).eval()

    def weight_bits(self, config: QuantConfig) -> int:
        """Bits of the quantized layer's weights."""
        plain = self.plain
        if not isinstance(plain, nn.Conv2d):
            return config.kind.weight_bits
        # Scales that training settled on are those of int8; a depthwise convolution has few weights, and each counts.
        depthwise = plain.weight.shape[1] == 1 and plain.groups == plain.out_channels > 1
        return 8 if depthwise or self.block is not None or self.fixed is not None else config.conv_bits

    def trial(self, config: QuantConfig, modules: Mapping[str, nn.Module]) -> QuantizedLayer | GroupQuantLinear:
        """The quantized layer as it would be now, to be measured."""
        if self.layer is None:
            self.fold(modules)
        return self.quantized(config)

    def speed_case(self, modules: Mapping[str, nn.Module], config: QuantConfig, group: str | None) -> SpeedCase:
        """What is measured: the dense modules in a row against the int8 layer that replaces them."""
        first = self.candidate.module
        # A mask is computed anew with every call: the dense layer to beat is one that has its zeros in place.
        plain = self.plain
        chain: list[Any] = [first, *(modules[name] for name in self.fusion.removed)]
        if only_masked(first):
            chain[0] = bare = plain_copy(plain)
            if isinstance(plain, nn.Conv2d) and type(first).forward is not nn.Conv2d.forward:
                chain[0] = replace(self.adapted, layer=bare)

        def dense(x: Tensor) -> Tensor:
            for module in chain:
                x = module(x)
            return x

        def quantized() -> nn.Module:
            return self.trial(config, modules)

        key = (
            self.candidate.kind,
            tuple(plain.weight.shape),
            plain.weight.dtype,
            plain.bias is not None,
            *self.adapted.geometry,
            *(type(modules[name]) for name in self.fusion.removed),
            self.fusion.activation,
            *self.notes,  # a block-sparse layer's time depends on its density
        )
        label = "four-bit" if self.weight_bits(config) == 4 else "int8"
        return SpeedCase(self.name, key, self.inputs, dense, quantized, group, label)


def _bias_corrected(
    layer: nn.Linear | nn.Conv2d, weight_scale: Tensor, input_mean: Tensor, bits: int
) -> nn.Linear | nn.Conv2d:
    """A copy whose bias makes up for the mean error of the rounded weights."""
    rounded = quantize_weight(layer.weight, weight_scale, bits).float()
    rounded = rounded * weight_scale.reshape(-1, *[1] * (rounded.dim() - 1))
    shift = expected_output_shift(layer, rounded, input_mean)
    corrected = plain_copy(layer)
    corrected.bias = nn.Parameter(corrected_bias(layer.bias, shift, torch.zeros_like(shift)), requires_grad=False)
    return corrected
