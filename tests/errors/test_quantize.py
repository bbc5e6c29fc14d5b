"""What `quantize`, `save`, `load` and `verify` say, and that a failure leaves the model and the old file untouched."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.ops import MAX_K
from tests.errors.expect import error


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def _int8(model: nn.Module, scheme: str = "W8A8-dynamic", **keywords: Any) -> nn.Module:
    return fc.quantize(model, scheme, only_if_faster=False, **keywords)


def _decision(model: nn.Module, name: str) -> tuple[str, str]:
    record: Any = model._fastcompress_record
    layer = record[name]
    return layer.action, layer.reason


def test_static_quantization_without_data() -> None:
    message = (
        "quantize: scheme 'W8A8' needs calibration_data: an iterable of batches, some hundred real samples in all; "
        "the other schemes and the algorithms 'rtn' and 'hqq' need none"
    )
    with error(ValueError, message):
        fc.quantize(_model(), "W8A8")


@pytest.mark.parametrize("nothing", [list, lambda: iter(()), lambda: filter(None, [])])
def test_calibration_data_that_yields_nothing(nothing: Callable[[], Any]) -> None:
    message = "quantize: calibration_data yielded no batches; give at least one (a used-up iterator is empty)"
    with error(ValueError, message):
        fc.quantize(_model(), "W8A8", nothing())


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (TypeError, "quantize: model must be a torch.nn.Module, got int", (3,)),
        (
            ValueError,
            "QuantConfig: scheme 'W8A8-dynamc' is unknown; valid are 'W8A8', 'W8A8-dynamic', 'W4A8', 'W4A16', 'W8A16'; "
            "did you mean 'W8A8-dynamic'?",
            (nn.Linear(4, 4), "W8A8-dynamc"),
        ),
    ],
)
def test_wrong_arguments(kind: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    with error(kind, message):
        fc.quantize(*arguments)


def test_batch_of_the_wrong_kind() -> None:
    with pytest.raises(TypeError, match=r"^quantize: a calibration batch is .*int; allowed are a tensor .*forward_fn="):
        fc.quantize(_model(), "W8A8", [3])


def test_target_that_matches_nothing() -> None:
    with pytest.raises(ValueError, match=r"^quantize: targets entry 'encoder' matches no layer"):
        fc.quantize(_model(), "W8A8-dynamic", targets="encoder")


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("inplace", [False, True])
def test_failure_during_calibration_leaves_the_model_as_it_was(inplace: bool) -> None:
    model = _model().train()
    before, kinds = _state(model), [type(m) for m in model.modules()]
    with pytest.raises(RuntimeError):  # the second batch does not fit
        _int8(model, "W8A8", calibration_data=[torch.randn(2, 8), torch.randn(2, 9)], inplace=inplace)
    assert [type(m) for m in model.modules()] == kinds
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layer_with_too_many_inputs_is_skipped_and_said_so() -> None:
    quantized = _int8(nn.Sequential(nn.Linear(MAX_K + 1, 2), nn.Linear(2, 2)))
    action, reason = _decision(quantized, "0")
    assert (action, type(quantized[0])) == ("skipped", nn.Linear)  # type: ignore[index]
    assert str(MAX_K) in reason
    assert str(MAX_K + 1) in reason


@pytest.mark.filterwarnings("ignore:.*holds 8 NaN or infinite values out of 8:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibration_without_finite_values_skips_the_layer(bad: float) -> None:
    quantized = _int8(nn.Sequential(nn.Linear(4, 4)), "W8A8", calibration_data=[torch.full((2, 4), bad)])
    assert _decision(quantized, "0") == ("skipped", "its inputs held no finite value in calibration")


class _Tied(nn.Module):
    """Two linears with one weight, and an output layer tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight
        self.twice = self.a
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.twice(self.b(self.a(self.embed(tokens)))))  # type: ignore[no-any-return]


def test_shared_weights_are_handled_and_named() -> None:
    torch.manual_seed(0)
    model, tokens = _Tied().eval(), torch.arange(20)
    quantized = _int8(model)
    assert quantized.twice is quantized.a
    assert torch.equal(quantized.a.canonical().weight, quantized.b.canonical().weight)  # type: ignore[union-attr,operator]
    assert "b" in _decision(quantized, "a")[1]
    assert "a" in _decision(quantized, "b")[1]
    assert _decision(quantized, "head") == ("skipped", "its weight is tied to embed (Embedding), which stays float")
    assert quantized.head.weight is quantized.embed.weight  # type: ignore[union-attr]
    assert nn.functional.cosine_similarity(quantized(tokens), model(tokens)).min() > 0.99


def _saved(folder: Path) -> tuple[nn.Module, Path]:
    quantized = _int8(_model())
    fc.save(quantized, folder)
    return quantized, next(folder.glob("*.safetensors"))


def _load(folder: Path) -> nn.Module:
    return fc.load(folder, model=_model())


def test_truncated_file_names_itself(tmp_path: Path) -> None:
    _, file = _saved(tmp_path / "m")
    whole = file.read_bytes()
    for size in (0, 7, 8, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(fc.CheckpointError, match=re.escape(str(file))):
            _load(tmp_path / "m")


def test_no_damaged_byte_loads_unnoticed(tmp_path: Path) -> None:
    """Whatever single byte changes in the tensor file: an error that names the file, never a wrong model."""
    quantized, file = _saved(tmp_path / "m")
    whole = file.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 100)):
        bad = bytearray(whole)
        bad[position] ^= 0x20
        file.write_bytes(bytes(bad))
        with pytest.raises(fc.CheckpointError, match=re.escape(file.name)):
            _load(tmp_path / "m")
    file.write_bytes(whole)
    x = torch.randn(3, 8)
    assert torch.equal(_load(tmp_path / "m")(x), quantized(x))


def test_failed_load_leaves_the_given_model_alone(tmp_path: Path) -> None:
    _, file = _saved(tmp_path / "m")
    file.write_bytes(file.read_bytes()[:-1])
    model = _model()
    before = _state(model)
    with pytest.raises(fc.CheckpointError):
        fc.load(tmp_path / "m", model=model)
    assert [type(m) for m in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_failed_save_leaves_the_old_file_alone(tmp_path: Path) -> None:
    quantized, _ = _saved(tmp_path / "m")
    files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    broken = copy.deepcopy(quantized)
    broken[0].packed = broken[0].packed.clone()  # type: ignore[index]
    broken[0].packed[3] ^= 0xFF  # type: ignore[index]
    with pytest.raises(RuntimeError):
        fc.save(broken, tmp_path / "m")
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == files


def test_load_from_nowhere(tmp_path: Path) -> None:
    message = (
        f"load: {tmp_path / 'none' / 'fastcompress.json'}: no such file; give a directory that fastcompress.save wrote"
    )
    with error(fc.CheckpointError, message):
        _load(tmp_path / "none")


def test_verify_names_the_layer_whose_bits_flipped() -> None:
    quantized = _int8(_model())
    fc.verify(quantized)
    packed = quantized[2].packed.clone()  # type: ignore[index]
    packed[-1 - packed.numel() // 4] ^= 0x04
    quantized[2].packed = packed  # type: ignore[index]
    with pytest.raises(fc.PackedBlobError, match=r"^verify: 1 of 2 packed layers are corrupt.*layer '2'.*checksum"):
        fc.verify(quantized)
