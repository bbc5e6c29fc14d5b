"""Random chains of int8 convolutions, their images, and what they give one convolution at a time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastcompress.ops import ACTIVATIONS, BlockCSR, SparseW8A8Canonical, W8A8Canonical, pack
from fastcompress.ops.block_csr import matrix_of
from fastcompress.ops.chain import Window
from fastcompress.ops.chain_program import INPUT, ChainStep, pack_chain
from fastcompress.ops.checks import conv_output_size
from fastcompress.ops.reference import memory_format

__all__ = [
    "FLOATS",
    "FORMS",
    "KINDS",
    "Chain",
    "Layer",
    "assert_same",
    "assert_same_bits",
    "batch",
    "canonical",
    "plain_chain",
    "random_chain",
    "residual_chain",
    "step_by_step",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("dense", "grouped", "depthwise", "16x4", "4x4", "1x4")
#: How the images lie in memory.
FORMS = ("contiguous", "channels_last", "sliced", "single", "single_channels_last")
_PLAIN = {"stride": (1, 1), "dilation": (1, 1)}
_SHAPES = {"16x4": (16, 4), "4x4": (4, 4), "1x4": (1, 4)}
Canonical = W8A8Canonical | SparseW8A8Canonical


@dataclass(frozen=True)
class Layer:
    """One convolution and all of a `ChainStep` but its weights."""

    kind: str
    canonical: Canonical
    options: dict[str, Any]

    @property
    def windows(self) -> list[tuple[int, int, int, int, int]]:
        """Kernel, stride, padding before and after, dilation; vertically and horizontally."""
        (kh, kw), o = self.canonical.weight_shape[2:], self.options
        (sh, sw), (top, bottom, left, right), (dh, dw) = o["stride"], o["padding"], o["dilation"]
        return [(kh, sh, top, bottom, dh), (kw, sw, left, right, dw)]


@dataclass(frozen=True)
class Chain:
    """A chain for images ``[channels, *size]`` of one dtype."""

    channels: int
    size: tuple[int, int]
    dtype: torch.dtype
    layers: tuple[Layer, ...]

    def steps(self, packer: Callable[[Canonical], Tensor] = pack) -> list[ChainStep]:
        """The steps, packed for the ISA that is set, or as ``packer`` does."""
        return [ChainStep(packer(layer.canonical), **layer.options) for layer in self.layers]

    def windows(self) -> tuple[list[int], list[int]]:
        """``height`` and ``width`` of the operator."""
        known = {INPUT: [Window(), Window()]}
        for index, layer in enumerate(self.layers):
            source = known[layer.options["input"]]
            known[index] = [w.then(*axis) for w, axis in zip(source, layer.windows, strict=True)]
        height, width = known[len(self.layers) - 1]
        return [height.offset, height.step], [width.offset, width.step]

    def arguments(self, packer: Callable[[Canonical], Tensor] = pack) -> tuple[Any, ...]:
        """All that the operator takes behind the images."""
        last = self.layers[-1]
        return (
            pack_chain(self.steps(packer)),
            last.canonical.weight_shape[0],
            *self.windows(),
            last.options["out_dtype"],
        )


def canonical(kind: str, channels: int, out: int, kernel: tuple[int, int], g: torch.Generator, r: Any) -> Canonical:
    """A layer of a kind with random weights; half of the blocks of a block-sparse one are zero."""
    groups = {"grouped": next((n for n in (2, 3, 5) if channels % n == 0), 1), "depthwise": channels}.get(kind, 1)
    weight = torch.randint(-128, 128, (out, channels // groups, *kernel), generator=g, dtype=torch.int8)
    rest: dict[str, Any] = {
        "weight_scale": torch.rand(out, generator=g) * 0.004 + 1e-4,
        "bias": torch.randn(out, generator=g) if r.random() < 0.7 else None,
        "input_mode": "static",
        "input_scale": r.uniform(0.02, 0.1),
        "input_zero_point": r.randrange(256),
        "activation": r.choice(list(ACTIVATIONS)),
    }
    if kind not in _SHAPES:
        return W8A8Canonical(weight, **rest, groups=groups)
    height, width = _SHAPES[kind]
    matrix = matrix_of(weight)
    grid = torch.rand(out // height, matrix.shape[1] // width, generator=g) < 0.5
    matrix = matrix * grid.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return SparseW8A8Canonical(BlockCSR.from_dense(matrix, (height, width)), **rest, kernel_size=kernel)


def _kind(r: random.Random, channels: int) -> str:
    fits = ["dense"]
    if any(channels % n == 0 for n in (2, 3, 5)):
        fits.append("grouped")
    if channels > 1:
        fits.append("depthwise")
    if channels % 4 == 0:
        fits += list(_SHAPES)
    return r.choice(fits)


def _out_channels(r: random.Random, kind: str, channels: int) -> int:
    if r.random() < 0.4 and not (kind == "16x4" and channels % 16):
        return channels  # what a residual needs
    multiple = {"16x4": 16, "4x4": 4, "depthwise": channels}.get(kind, 1)
    if kind == "grouped":
        multiple = next(n for n in (2, 3, 5) if channels % n == 0)
    if kind == "depthwise":
        return channels
    return multiple * r.choice([1, 2] if multiple == 16 else [1, 2, 3, 4, 5, 8, 16] if multiple < 4 else [1, 2, 4, 5])


def _axis(r: random.Random, size: int) -> tuple[int, int, int, int, int]:
    """Kernel, stride, padding before and after, dilation of one axis, for at least one output."""
    while True:
        kernel, dilation = r.choice([1, 1, 2, 3, 3, 5]), r.choice([1, 1, 1, 2])
        span = dilation * (kernel - 1)
        if r.random() < 0.5:  # as many outputs as inputs
            before = r.randint(0, span)
            return kernel, 1, before, span - before, dilation
        stride, before, after = r.choice([1, 2, 3]), r.randint(0, 3), r.randint(0, 3)
        if 1 <= conv_output_size(size, kernel, stride, before, after, dilation) <= 20:
            return kernel, stride, before, after, dilation


def random_chain(seed: int) -> Chain:
    """One to seven convolutions that read and add whatever they may; a few that nobody reads give int8."""
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    channels, size = r.choice([1, 2, 3, 4, 5, 8, 12, 16, 20]), (r.choice([1, 2, 5, 8, 13]), r.choice([1, 3, 6, 9, 12]))
    dtype = r.choice((*FLOATS, torch.uint8))
    types = {INPUT: (channels, *size, dtype)}
    layers: list[Layer] = []
    count = r.choice([1, 2, 2, 3, 3, 4, 5, 7])
    for index in range(count):
        readable = [value for value, (*_, kind) in types.items() if kind != torch.int8]
        source = readable[-1] if r.random() < 0.7 else r.choice(readable)
        from_channels, height, width, _ = types[source]
        kind = _kind(r, from_channels)
        out = _out_channels(r, kind, from_channels)
        vertical, horizontal = _axis(r, height), _axis(r, width)
        shape = (out, conv_output_size(height, *vertical), conv_output_size(width, *horizontal))
        added = [value for value, (*other, kept) in types.items() if tuple(other) == shape and kept in FLOATS]
        wanted = [*FLOATS, torch.float32, torch.uint8, torch.uint8]
        if index + 1 == count or r.random() < 0.1:
            wanted.append(torch.int8)
        out_dtype = r.choice(wanted)
        options = {
            "stride": (vertical[1], horizontal[1]),
            "padding": (*vertical[2:4], *horizontal[2:4]),
            "dilation": (vertical[4], horizontal[4]),
            "input": source,
            "residual": r.choice(added) if added and r.random() < 0.8 else None,
            "out_dtype": out_dtype,
            "out_scale": r.uniform(0.01, 0.2),
            "out_zero_point": r.randrange(256) - (128 if out_dtype == torch.int8 else 0),
        }
        layers.append(Layer(kind, canonical(kind, from_channels, out, (vertical[0], horizontal[0]), g, r), options))
        types[index] = (*shape, out_dtype)
    return Chain(channels, size, dtype, tuple(layers))


def residual_chain(seed: int, channels: int = 32, size: int = 12, count: int = 5, kind: str = "dense") -> Chain:
    """Convolutions of one shape, each adding a value from before it, none of which goes unread: the last one depends on
    every bit before it. Of work enough for several threads."""
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    layers = []
    unread = [INPUT]
    for index in range(count):
        kernel = r.choice([1, 3])
        added = r.choice([value for value in unread if value != index - 1] or [r.randrange(-1, index)])
        unread = [index, *(value for value in unread if value not in (index - 1, added))]
        layer = canonical(kind, channels, channels, (kernel, kernel), g, r)
        inputs = math.prod(layer.weight_shape[1:])
        # Outputs of half the inputs' size, far from saturation.
        scale = torch.full((channels,), 0.5 / (74 * math.sqrt(inputs)))
        layer = replace(layer, activation="none", input_scale=0.2, input_zero_point=128, weight_scale=scale)
        options = {"padding": (kernel // 2,) * 4, "input": index - 1, "residual": added, "out_dtype": r.choice(FLOATS)}
        layers.append(Layer(kind, layer, {**_PLAIN, **options}))
        if r.random() < 0.3:  # values that live long
            unread.append(INPUT if r.random() < 0.5 else index)
    return Chain(channels, (size, size), torch.float32, tuple(layers))


def plain_chain(channels: int, size: tuple[int, int], *layers: tuple[int, int, int]) -> Chain:
    """Convolutions one behind the other, each of (output channels, kernel, padding), in float32."""
    r, g = random.Random(channels), torch.Generator().manual_seed(channels)
    made: list[Layer] = []
    for index, (out, kernel, padding) in enumerate(layers):
        layer = canonical("dense", channels, out, (kernel, kernel), g, r)
        options = {"padding": (padding,) * 4, "input": index - 1, "residual": None, "out_dtype": torch.float32}
        made.append(Layer("dense", replace(layer, activation="none"), {**_PLAIN, **options}))
        channels = out
    return Chain(made[0].canonical.weight_shape[1], size, torch.float32, tuple(made))


def batch(chain: Chain, count: int, form: str = "contiguous", seed: int = 0, wild: bool = False) -> Tensor:
    """``count`` images in a form of `FORMS`, one without a batch dimension where it is single; wild: not all finite."""
    g = torch.Generator().manual_seed(seed)
    count = 1 if form.startswith("single") else count
    shape = (count, chain.channels, *chain.size)
    if chain.dtype == torch.uint8:
        x = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    else:
        x = torch.randn(shape, generator=g) * 3
        if wild and x.numel():
            for value in (float("nan"), float("inf"), -float("inf"), -0.0, 1e38):
                x.view(-1)[int(torch.randint(0, x.numel(), (1,), generator=g))] = value
        x = x.to(chain.dtype)
    if form == "sliced":
        wide = torch.zeros(*shape[:-1], 2 * shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if form.endswith("channels_last"):  # contiguous() would hand on what is both
        x = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last).copy_(x)
    return x[0] if form.startswith("single") else x


def step_by_step(x: Tensor, steps: list[ChainStep], layers: tuple[Layer, ...]) -> Tensor:
    """The chain as calls of ``conv2d_w8a8``, channels-last between them, in the format of the images at the end."""
    whole = x if x.dim() == 4 else x.unsqueeze(0)
    values = {INPUT: torch.empty(whole.shape, dtype=x.dtype, memory_format=torch.channels_last).copy_(whole)}
    for index, (step, layer) in enumerate(zip(steps, layers, strict=True)):
        out, _, *kernel = layer.canonical.weight_shape
        values[index] = torch.ops.fastcompress.conv2d_w8a8(
            values[step.input],
            step.packed,
            out,
            kernel,
            step.stride,
            step.padding,
            step.dilation,
            None if step.residual is None else values[step.residual],
            step.out_dtype,
            step.out_scale,
            step.out_zero_point,
        )
    last = values[len(steps) - 1]
    found = torch.empty(last.shape, dtype=last.dtype, memory_format=memory_format(whole)).copy_(last)
    return found if x.dim() == 4 else found.squeeze(0)


def assert_same(found: Tensor, expected: Tensor, what: object = "") -> None:
    """Dtype, shape, strides and bits; NaN is NaN."""
    assert found.stride() == expected.stride(), what
    assert_same_bits(found, expected, what)


def assert_same_bits(found: Tensor, expected: Tensor, what: object = "") -> None:
    """Dtype, shape and bits; NaN is NaN."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), what
    if not found.is_floating_point():
        assert torch.equal(found, expected), what
        return
    same = (found == expected) & (found.signbit() == expected.signbit()) | found.isnan() & expected.isnan()
    assert bool(same.all()), what
