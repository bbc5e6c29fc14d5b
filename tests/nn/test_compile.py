"""torch.compile(fullgraph=True) and torch.export on models that hold quantized layers, with and without gradients."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcompress.nn import QuantConv2d, QuantLinear
from tests.ops.cases import rng


class _Net(nn.Module):
    """A convolution, a static and a dynamic linear layer, and a reader of weight.dtype (as Hugging Face's ViT)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = QuantConv2d.from_float(nn.Conv2d(3, 8, 3, padding=1), input_scale=0.03, input_zero_point=128)
        self.norm = nn.BatchNorm2d(8)
        self.static = QuantLinear.from_float(
            nn.Linear(8, 16), input_mode="static", input_scale=0.02, input_zero_point=128, activation="gelu"
        )
        self.dynamic = QuantLinear.from_float(nn.Linear(16, 5), input_mode="dynamic")

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.to(self.conv.weight.dtype)))
        return self.dynamic(self.static(x.mean((2, 3))))


@pytest.fixture
def net() -> _Net:
    return _Net().eval()


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def image(n: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=rng(seed))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_gradient(net: _Net, backend: str) -> None:
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(image()), net(image()))
        last = image().to(memory_format=torch.channels_last)
        assert torch.equal(compiled(last), net(last))


def test_compile_with_gradient(net: _Net) -> None:
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (net, compiled):
        x = image().requires_grad_()
        function(x).square().sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients)


def test_compiled_graph_holds_the_operators(net: _Net) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    with torch.no_grad():
        torch.compile(net, fullgraph=True, backend=backend)(image())
    called = [str(node.target) for node in graphs[0].graph.nodes if "fastcompress" in str(node.target)]
    assert [name.split(".")[1] for name in called if "dequantize" not in name] == [
        "conv2d_w8a8",
        "linear_w8a8",
        "linear_w8a8",
    ]


def test_compile_with_a_dynamic_batch(net: _Net) -> None:
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for n in (2, 3, 5):
            assert torch.equal(compiled(image(n)), net(image(n)))


@pytest.mark.parametrize("strict", [False, True])
def test_export(net: _Net, strict: bool) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (image(3),), dynamic_shapes=({0: batch},), strict=strict)
    with torch.no_grad():
        for n in (2, 4):
            assert torch.equal(program.module()(image(n)), net(image(n)))


def test_exported_program_survives_a_file(net: _Net) -> None:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net, (image(),)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    assert torch.equal(loaded.module()(image()), net(image()))


def test_weight_values_inside_a_compiled_function() -> None:
    layer = QuantLinear.from_float(nn.Linear(4, 3), input_mode="dynamic")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(x: Tensor) -> Tensor:
        assert layer.bias is not None
        return x @ layer.weight.t() + layer.bias

    x = torch.randn(2, 4, generator=rng(2))
    torch.testing.assert_close(function(x), nn.functional.linear(x, layer.dequantize(), layer.bias))


def test_loading_a_state_dict_reaches_the_compiled_model(net: _Net) -> None:
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = compiled(image())
        state = net.state_dict()
        state["dynamic.weight"] = -state["dynamic.weight"]
        net.load_state_dict(state)
        after = compiled(image())
        assert torch.equal(after, net(image()))
        assert not torch.equal(after, before)
