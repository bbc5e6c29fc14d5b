"""TensorFlow-style "same" padding: computed from each input's size, under compile and export, through save and load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d


class Conv2dSame(nn.Conv2d):
    """What TensorFlow's ports call it: pads so that the output has ceil(size / stride) pixels."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):
            size, k, s = input.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return nn.functional.conv2d(nn.functional.pad(input, pads), self.weight, self.bias, self.stride)


def _quantized() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(Conv2dSame(3, 8, 3, stride=2), nn.ReLU()).eval()
    data = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    return model, fc.quantize(model, "W8A8", calibration_data=data, only_if_faster=False)


@pytest.mark.parametrize("size", [(16, 16), (9, 9), (17, 12)])
def test_other_sizes_are_padded_as_the_float_layer_pads_them(size: tuple[int, int]) -> None:
    model, q = _quantized()
    assert isinstance(q[0], QuantConv2d)
    x = torch.randn(1, 3, *size)
    want, got = model(x), q(x)
    assert got.shape == want.shape
    assert (got - want).abs().max() < 0.05 * want.abs().max()


def test_compile_export_and_files_keep_it(tmp_path: Path) -> None:
    model, q = _quantized()
    x = torch.randn(1, 3, 9, 11)
    want = q(x)
    assert torch.equal(torch.compile(q, fullgraph=True, backend="aot_eager")(x), want)
    assert torch.equal(torch.export.export(q, (x,)).module()(x), want)
    fc.save(q, tmp_path / "model")
    loaded = fc.load(tmp_path / "model", model=model)
    assert torch.equal(loaded(x), want)
    smaller = torch.randn(1, 3, 6, 5)
    assert torch.equal(loaded(smaller), q(smaller))


def test_notes_stay_in_the_explanation() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    q = fc.quantize(model, "W8A8-dynamic", example_inputs=torch.randn(4, 16), only_if_faster=False)
    assert any(row.reason for row in fc.explain(q).rows)


def test_a_tuple_of_tensors_is_not_taken_for_batches() -> None:
    model = nn.Sequential(nn.Linear(16, 4)).eval()
    with pytest.raises(TypeError, match="tuple of 2 tensors"):
        fc.quantize(model, "W8A8", calibration_data=(torch.randn(4, 16), torch.ones(4, 16) * 100))


def test_explain_looks_through_torch_compile() -> None:
    model = nn.Sequential(nn.Linear(16, 4)).eval()
    q = fc.quantize(model, "W8A8-dynamic", example_inputs=torch.randn(4, 16), only_if_faster=False)
    names = [row.name for row in fc.explain(q).rows]
    assert [row.name for row in fc.explain(torch.compile(q)).rows] == names == ["0"]
