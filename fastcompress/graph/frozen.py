"""The model that `freeze` returns: the calls of a graph one after the other, without modules around them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, fx, nn

from fastcompress.nn import PackedLayer
from fastcompress.nn.calls import below_autograd, is_compiling, is_grad_enabled, is_transforming, raise_blob_error

from .capture import tensor_of
from .chains import Chain, chain_call, find_chains
from .epilogue import layer_of

__all__ = ["FrozenModel"]


class FrozenModel(nn.Module):
    """A compressed model for inference, as one straight program.

    Attributes:
        additions: residual additions that layers do in their epilogue.
        activations: activations that came into an epilogue here, besides those that were there before.
        links: layers that hand uint8 tensors to the next.
        chains: runs of int8 convolutions that are one call each, in which a thread takes whole images through all.

    It takes what the model took, in the dtypes of ``example_inputs``, and gives the same bits. There are no gradients,
    hooks of inner modules do not run, and it stays in eval mode. It is neither saved nor changed: save, cast or load
    into the model, and freeze that again.
    """

    is_one_program = True

    def __init__(self, captured: fx.GraphModule, additions: int, activations: int, links: int) -> None:
        super().__init__()
        self.additions, self.activations, self.links = additions, activations, links
        self.body = captured  # for its modules and its graph; what runs is the program
        self._inputs = tuple(str(node.target) for node in captured.graph.nodes if node.op == "placeholder")
        self._dtypes = tuple(_dtype(node) for node in captured.graph.nodes if node.op == "placeholder")
        chains = find_chains(captured)
        self.chains = len(chains)
        self._program = _compile(captured, chains)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        for x, dtype in zip(args, self._dtypes, strict=False):
            if dtype is not None and getattr(x, "dtype", None) is not dtype:
                self._refuse(x, dtype)
        if kwargs:
            self._check_named(kwargs)
        if is_compiling():
            return self._program(*args, **kwargs)
        if is_transforming():
            raise RuntimeError(
                "FrozenModel: torch.func transforms and forward-mode AD do not pass through it; use the model it was "
                "frozen from"
            )
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError(
                "FrozenModel: autocast would change the dtypes that the program was made for; call it outside, or use "
                "the model it was frozen from"
            )
        if is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (*args, *kwargs.values())):
            raise RuntimeError(
                "FrozenModel: an input requires a gradient, and there are none here; use torch.no_grad(), or the model "
                "it was frozen from"
            )
        try:
            with below_autograd():
                return self._program(*args, **kwargs)
        except Exception as error:
            raise_blob_error(error)
            raise

    def _check_named(self, given: dict[str, Any]) -> None:
        for name, dtype in zip(self._inputs, self._dtypes, strict=True):
            if name in given and dtype is not None and getattr(given[name], "dtype", None) is not dtype:
                self._refuse(given[name], dtype)

    def _refuse(self, x: Any, dtype: torch.dtype) -> NoReturn:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        kind = ValueError if isinstance(x, Tensor) else TypeError
        raise kind(f"FrozenModel: an input is {got}, the model was frozen for {dtype}; convert it, or freeze again")

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever ``mode`` says: a model with a frozen part can be trained around it."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(torch.empty(0))
        if probe.dtype != torch.float32 or probe.device.type != "cpu":
            raise RuntimeError(
                f"FrozenModel.to: the program was made for its dtypes on the CPU, not for {probe.dtype} on "
                f"{probe.device}; cast the model it was frozen from, and freeze that"
            )
        return super()._apply(fn, recurse)

    def load_state_dict(self, *args: Any, **options: Any) -> NoReturn:
        """Not possible: scales are part of the program."""
        raise RuntimeError(
            "FrozenModel.load_state_dict: scales are part of the program; load into the model it was frozen from, and "
            "freeze that"
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        self.load_state_dict()

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenModel:
        result = FrozenModel(copy.deepcopy(self.body, memo), self.additions, self.activations, self.links)
        memo[id(self)] = result
        return result

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "FrozenModel: it is not saved, as it is made for this machine; save the model it was frozen from "
            "(fc.save), and freeze it after loading"
        )

    def extra_repr(self) -> str:
        """The counts, for ``print(model)``."""
        return f"additions={self.additions}, activations={self.activations}, links={self.links}, chains={self.chains}"


def _dtype(node: fx.Node) -> torch.dtype | None:
    meta = tensor_of(node)
    return None if meta is None else meta.dtype


def _compile(captured: fx.GraphModule, chains: Sequence[Chain]) -> Callable[..., Any]:
    """The graph as one Python function: chains are one call each, other compressed layers lose their module."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    ends = {chain.nodes[-1]: chain for chain in chains}
    inside = {node for chain in chains for node in chain.nodes[:-1]}
    for node in captured.graph.nodes:
        if node in ends:
            chain = ends[node]
            values[node] = graph.call_function(chain_call(captured, chain), (values[chain.entry],))
        if node in ends or node in inside:
            continue
        copied = values[node] = graph.node_copy(node, lambda old: values[old])
        layer = layer_of(captured, node)
        if layer is not None:
            copied.op, copied.target = "call_function", _call(layer, str(node.target), node.kwargs)
            copied.kwargs = {name: value for name, value in copied.kwargs.items() if name == "residual"}
    lowered = fx.GraphModule(captured, graph, "Program")
    return lowered.forward


def _call(layer: PackedLayer, name: str, options: Any) -> Callable[..., Tensor]:
    """The call of one layer with its options settled."""
    run = layer.run
    dtype = options.get("out_dtype")
    scale, zero_point = options.get("out_scale", 1.0), options.get("out_zero_point", 0)

    def call(input: Tensor, residual: Tensor | None = None) -> Tensor:
        try:
            return run(input, residual, dtype, scale, zero_point)
        except Exception as error:
            layer._diagnose(input)
            error.add_note(f"raised in layer {name!r} of the frozen model")
            raise

    # torch.fx writes calls by the name of the function.
    call.__name__, call.__module__ = name.replace(".", "_"), __name__
    return call
