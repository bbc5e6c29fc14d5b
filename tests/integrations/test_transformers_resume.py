"""A recipe in Hugging Face's Trainer goes on from a checkpoint to the same bits, or says why it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.errors import CheckpointError
from fastcompress.nn import QuantLinear
from fastcompress.recipes import QAT, Distillation, Pruning
from tests.recipes.small import full_recipe, same_state

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
pytest.importorskip("accelerate", reason="needs the extra transformers")
callbacks = pytest.importorskip("fastcompress.integrations.transformers")
runs = pytest.importorskip("tests.integrations.trainer_runs")

SHUFFLED = {"train_sampling_strategy": "random"}
SAVING = {"save_strategy": "steps", "save_steps": 4, **SHUFFLED}


@pytest.mark.parametrize("recipe", [full_recipe, runs.projecting])
def test_to_the_same_bits(recipe: Any, tmp_path: Path) -> None:
    """From the middle of an epoch and from an end of one, with a random order and dropout."""
    whole = runs.train(runs.Classifier(dropout=0.5), recipe(), tmp_path, **SAVING).finish()
    shutil.rmtree(tmp_path / "checkpoint-18")
    shutil.rmtree(tmp_path / "checkpoint-16")
    for given in (str(tmp_path / "checkpoint-8"), str(tmp_path / "checkpoint-12")):
        again = runs.train(runs.Classifier(dropout=0.5), recipe(), tmp_path, resume=given, **SHUFFLED)
        assert again.session.model is not whole
        assert same_state(again.finish(), whole), given


def test_from_the_last_checkpoint(tmp_path: Path) -> None:
    """Into a model that began with other weights: all of them, and the scores, come from the checkpoint."""
    recipe = [Pruning(0.5, "4x4", criterion="movement", end=2, frequency=2)]
    whole = runs.train(runs.Classifier(), recipe, tmp_path, **SAVING).finish()
    shutil.rmtree(tmp_path / "checkpoint-18")
    elsewhere = runs.Classifier()
    for parameter in elsewhere.parameters():
        nn.init.normal_(parameter)
    again = runs.train(elsewhere, recipe, tmp_path, resume=True, **SHUFFLED)
    assert again.session.pruners[0].step_count == 18
    assert same_state(again.finish(), whole)


def bert(hidden: int) -> Any:
    torch.manual_seed(hidden)
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=8,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def sentences() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 32, (24, 6), generator=generator)
    return [{"input_ids": each, "attention_mask": torch.ones_like(each), "labels": each[0] % 3} for each in ids]


def test_a_pretrained_model(tmp_path: Path) -> None:
    """Of transformers itself: outputs with loss and logits, its own files, layers that conversion knows."""
    recipe = [
        Pruning(0.5, "4x4", end=1, frequency=1),
        Distillation(bert(24), losses=["logits"], start=0.5),
        QAT(start=1, freeze_at=1.5),
    ]
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "train_dataset": sentences()}
    whole = runs.train(bert(16), recipe, tmp_path, save_strategy="steps", save_steps=4, **options).finish()
    again = runs.train(bert(16), recipe, tmp_path, resume=str(tmp_path / "checkpoint-4"), **options).finish()
    assert same_state(again, whole)
    batch = {name: torch.stack([row[name] for row in sentences()]) for name in ("input_ids", "attention_mask")}
    fast = fc.convert(whole.eval(), example_inputs=batch, only_if_faster=False)
    assert isinstance(fast.bert.encoder.layer[0].intermediate.dense, QuantLinear)
    assert fast(**batch).logits.shape == (24, 3)


def test_a_language_model(tmp_path: Path) -> None:
    """Its embedding and its head share a weight, and its loss is divided by the tokens of all batches of a step."""
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        tie_word_embeddings=True,
    )

    def trained(folder: Path, resume: Any = None) -> Any:
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
        rows = [{**row, "labels": row["input_ids"]} for row in sentences()]
        options = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
        if resume is None:
            options |= {"save_strategy": "steps", "save_steps": 2}
        recipe = [Pruning(0.5, "4x4", end=1, frequency=1), Distillation("dense"), QAT(start=1, freeze_at=1.5)]
        return runs.train(model, recipe, folder, resume=resume, train_dataset=rows, **options).finish()

    whole = trained(tmp_path)
    assert whole.lm_head.weight is whole.model.embed_tokens.weight
    assert same_state(trained(tmp_path, str(tmp_path / "checkpoint-2")), whole)


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    recipe = [Pruning(0.5, "4x4", end=1), QAT(start=1)]
    runs.train(runs.Classifier(), recipe, tmp_path, save_strategy="epoch", num_train_epochs=2)
    first, last = tmp_path / "checkpoint-6", tmp_path / "checkpoint-12"

    def resumed(path: Path, other: Any = recipe, epochs: int = 2, model: Any = None) -> None:
        model = runs.Classifier() if model is None else model
        try:
            runs.train(model, other, tmp_path, resume=str(path), num_train_epochs=epochs)
        finally:
            plain = not any("parametrizations" in name for name in model.state_dict())
            untouched.append(plain)

    untouched: list[bool] = []
    with pytest.raises(ValueError, match=r"stages\[0\]\.sparsity was 0\.5 and is 0\.75"):
        resumed(first, [Pruning(0.75, "4x4", end=1), QAT(start=1)])
    with pytest.raises(ValueError, match="steps was 12 and is 18"):
        resumed(first, epochs=3)
    shutil.copyfile(last / "fastcompress" / "last.pt", tmp_path / "kept.pt")
    (last / "fastcompress" / "last.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        resumed(last)
    shutil.rmtree(last / "fastcompress")
    with pytest.raises(ValueError, match="has no folder 'fastcompress'"):
        resumed(last)
    assert untouched == [True] * 4
    shutil.copyfile(last / "model.safetensors", first / "model.safetensors")
    with pytest.raises(ValueError, match="the model is not as it was when the checkpoint was written"):
        resumed(first)
    with pytest.raises(ValueError, match="there is no checkpoint to go on from"):
        runs.train(runs.Classifier(), recipe, tmp_path / "empty", resume=True)
