"""Int8 convolutions that follow each other become one call: a thread takes whole images through all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from fastcompress.nn.calls import is_compiling
from fastcompress.nn.conv2d import PackedConv2d
from fastcompress.nn.quantized import QuantizedLayer
from fastcompress.ops import native
from fastcompress.ops.chain import Window
from fastcompress.ops.chain_program import INPUT, MOST_STEPS, ChainStep, pack_chain, unpack_chain

from .epilogue import layer_of

__all__ = ["Chain", "chain_call", "find_chains"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


@dataclass(frozen=True)
class Chain:
    """Calls of convolutions that follow each other in the graph.

    Attributes:
        nodes: in the graph's order. They read each other and `entry`; only the last one is read by others.
        entry: the node of the images that go in.
    """

    nodes: tuple[fx.Node, ...]
    entry: fx.Node


def find_chains(model: fx.GraphModule) -> list[Chain]:
    """The longest chains of at least two convolutions; none where there are no native kernels."""
    nodes, chains, place = list(model.graph.nodes), list[Chain](), 0
    while native.available and place < len(nodes):
        run: list[fx.Node] = []
        for node in nodes[place:]:
            if len(run) == MOST_STEPS or not _may_follow(model, node, run):
                break
            run.append(node)
        length = _longest(run)
        if length > 1:
            chains.append(Chain(tuple(run[:length]), _entry(run[0])))
        place += max(length, 1)
    return chains


def _entry(first: fx.Node) -> fx.Node:
    source = first.args[0]
    assert isinstance(source, fx.Node)
    return source


def _may_follow(model: fx.GraphModule, node: fx.Node, run: list[fx.Node]) -> bool:
    """Whether a node is a convolution that reads what is in the run or goes into it."""
    layer = layer_of(model, node)
    if not isinstance(layer, PackedConv2d) or not isinstance(layer, QuantizedLayer) or layer.same_padding:
        return False
    if getattr(layer, "weight_bits", 8) == 4:
        return False  # a chain calls its convolutions for few images at a time, and each call would unpack the weights
    if layer.packed.device.type != "cpu" or node.kwargs.get("out_dtype") not in _DTYPES:
        return False
    source = layer_of(model, node.args[0])
    if node.args[0] in run and isinstance(source, PackedConv2d) and source.out_channels == 1:
        return False  # one channel of one pixel would lie both ways, and torch's answer is not channels-last then
    known = {*run, _entry(run[0]) if run else node.args[0]}
    residual = node.kwargs.get("residual")
    return node.args[0] in known and (residual is None or residual in known)


def _longest(run: list[fx.Node]) -> int:
    """How many of the run's first nodes are a chain: all but the last of them are read by each other only."""
    for length in range(len(run), 1, -1):
        inside = set(run[:length])
        if all(user in inside for node in run[: length - 1] for user in node.users):
            return length
    return len(run[:1])


def chain_call(model: fx.GraphModule, chain: Chain) -> Callable[[Tensor], Tensor]:
    """The one call that gives what the chain's last node gives. The layers' weights move into its program."""
    layers = [_conv(model, node) for node in chain.nodes]
    numbers = {chain.entry: INPUT, **{node: index for index, node in enumerate(chain.nodes)}}
    program = pack_chain([_step(layer, node, numbers) for layer, node in zip(layers, chain.nodes, strict=True)])
    for layer, step in zip(layers, unpack_chain(program), strict=True):
        layer.packed = step.packed  # the same bytes, held once
    windows = _windows(chain, layers, numbers)
    height, width = ([window.offset, window.step] for window in windows)
    last, dtype = layers[-1], chain.nodes[-1].kwargs["out_dtype"]
    operator = torch.ops.fastcompress.conv2d_chain.default
    bound, names = operator._op, [str(node.target) for node in chain.nodes]

    def call(input: Tensor) -> Tensor:
        run = operator if is_compiling() else bound
        try:
            return cast(Tensor, run(input, program, last.out_channels, height, width, dtype))
        except Exception as error:
            note = f"raised in the frozen model's chain of convolutions {', '.join(names)} (numbered from 0)"
            error.add_note(note)
            try:
                layers[0]._diagnose(input)
            except Exception as plainer:
                plainer.add_note(note)
                raise
            raise

    call.__name__, call.__module__ = f"chain_{names[0].replace('.', '_')}", __name__
    return call


def _conv(model: fx.GraphModule, node: fx.Node) -> PackedConv2d:
    layer = layer_of(model, node)
    assert isinstance(layer, PackedConv2d)
    return layer


def _step(layer: PackedConv2d, node: fx.Node, numbers: dict[fx.Node, int]) -> ChainStep:
    options: dict[str, Any] = dict(node.kwargs)
    residual = options.pop("residual", None)
    return ChainStep(
        layer.packed,
        layer.stride,
        layer.padding4,
        layer.dilation,
        numbers[_entry(node)],
        None if residual is None else numbers[residual],
        **options,
    )


def _windows(chain: Chain, layers: list[PackedConv2d], numbers: dict[fx.Node, int]) -> tuple[Window, Window]:
    """Height and width of the output, by those of the input."""
    known = {INPUT: (Window(), Window())}
    for index, (node, layer) in enumerate(zip(chain.nodes, layers, strict=True)):
        height, width = known[numbers[_entry(node)]]
        top, bottom, left, right = layer.padding4
        known[index] = (
            height.then(layer.kernel_size[0], layer.stride[0], top, bottom, layer.dilation[0]),
            width.then(layer.kernel_size[1], layer.stride[1], left, right, layer.dilation[1]),
        )
    return known[len(layers) - 1]
