"""A recipe in Hugging Face's Trainer: the bits of the package's own loop, steps, losses, evaluation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d, SparseQuantConv2d
from fastcompress.pruning import mask_of
from fastcompress.quantization import fake_quantized
from fastcompress.recipes import QAT, Distillation, Pruning, Session
from tests.recipes.small import full_recipe, network, same_state

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
pytest.importorskip("accelerate", reason="needs the extra transformers")
callbacks = pytest.importorskip("fastcompress.integrations.transformers")
runs = pytest.importorskip("tests.integrations.trainer_runs")


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """Trainer's: everything decays but the biases, and what a recipe adds below two dimensions."""
    named = list(model.named_parameters())
    plain = [p for name, p in named if name.endswith(("bias", ".step"))]
    decayed = [p for name, p in named if all(p is not other for other in plain)]
    groups = [{"params": decayed, "weight_decay": runs.DECAY}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=runs.RATE)


@pytest.mark.parametrize("recipe", [full_recipe, runs.projecting])
def test_the_same_bits_as_compress(recipe: Any, tmp_path: Path) -> None:
    """With AdamW and weight decay; learned scales must not decay."""
    model, dense = runs.Classifier(), runs.Classifier()
    trainer = runs.make_trainer(model, tmp_path)
    callback = callbacks.CompressionCallback(recipe()).attach(trainer)
    trainer.train()
    trained = callback.finish()
    wanted = fc.compress(
        dense,
        recipe(),
        runs.batches(),
        epochs=runs.EPOCHS,
        optimizer=optimizer_of(dense),
        learning_rate="constant",
        convert=False,
        progress=False,
    ).trained
    assert trained is model
    assert same_state(trained, wanted)
    assert [name for name, _ in model.named_children()] == ["net"]
    assert not {"train", "compute_loss", "get_decay_parameter_names"} & vars(trainer).keys()
    fast = fc.convert(trained.eval(), example_inputs=runs.batches()[0], only_if_faster=False)
    assert isinstance(fast.net[0], QuantConv2d)
    assert isinstance(fast.net[3], SparseQuantConv2d if recipe is full_recipe else QuantConv2d)


def test_the_same_bits_as_a_loop_with_clipping_and_accumulation(tmp_path: Path) -> None:
    """Six batches an epoch, four a step: the second step of an epoch has two."""
    callback = runs.train(runs.Classifier(), full_recipe(), tmp_path, gradient_accumulation_steps=4, max_grad_norm=0.05)
    model, dense = runs.Classifier(), runs.Classifier().eval()
    data, phase = runs.batches(), fc.recipes.Phase(0.0, runs.EPOCHS, tuple(full_recipe()))
    session = Session(model, phase, 2, runs.EPOCHS, data[0], dense=dense)
    optimizer = optimizer_of(model)
    session.bind_optimizer(optimizer)
    for step in range(2 * runs.EPOCHS):
        session.before_step(step)
        optimizer.zero_grad()
        part = data[:4] if step % 2 == 0 else data[4:]
        for batch in part:
            model.train()
            with session.watching():
                output = model(**batch)
            (session.loss(output["loss"], batch, output)[0] / len(part)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        session.before_update()
        optimizer.step()
        session.after_step()
    assert same_state(callback.finish(), session.finish())


class Watching(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
    """What the second convolution is like after each optimizer step."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []
        self.modes: list[str] = []
        self.revived = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        layer = kwargs["model"].net[3]
        mask = mask_of(layer)
        assert mask is not None
        self.masks.append(mask.clone())
        self.modes.append(fake_quantized(kwargs["model"])["net.3"].input_fake_quant.mode)  # type: ignore[union-attr]
        self.revived += int(layer.weight[~mask].count_nonzero())


def test_steps_are_those_of_the_optimizer_and_no_weight_comes_back(tmp_path: Path) -> None:
    """Two batches a step: three steps an epoch."""
    recipe = [Pruning(0.5, "4x4", schedule="linear", end=2, frequency=1), QAT(start=1, freeze_at=2)]
    watching = Watching()
    trainer = runs.make_trainer(runs.Classifier(), tmp_path, watching, gradient_accumulation_steps=2, max_grad_norm=1.0)
    callbacks.CompressionCallback(recipe).attach(trainer)
    trainer.train()
    sparsity = [1.0 - float(mask.float().mean()) for mask in watching.masks]
    blocks = 16 * 9
    assert sparsity == [pytest.approx(round(blocks * 0.5 * min(step, 6) / 6) / blocks) for step in range(1, 10)]
    assert all(not bool((later & ~earlier).any()) for earlier, later in itertools.pairwise(watching.masks))
    assert watching.revived == 0
    assert watching.modes == ["off"] * 3 + ["train"] * 3 + ["frozen"] * 3


def test_gradients_of_the_step_are_there_for_the_scores(tmp_path: Path) -> None:
    recipe = [Pruning(0.5, "4x4", criterion="taylor", end=1, frequency=2)]
    mask = mask_of(runs.train(runs.Classifier(), recipe, tmp_path).finish().net[3])  # type: ignore[union-attr]
    assert mask is not None
    assert float(mask.float().mean()) == 0.5


def test_the_teachers_loss_is_added(tmp_path: Path) -> None:
    """With nothing but the teacher's loss, a perfect student stays as it is: the gradient is zero."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    teacher, student = runs.Classifier(linear), runs.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    student.load_state_dict(teacher.state_dict())
    recipe = [Distillation(teacher, losses=["logits"], task_weight=0.0)]
    runs.train(student, recipe, tmp_path, optim="sgd", weight_decay=0.0, num_train_epochs=1)
    torch.testing.assert_close(student.net[1].weight, teacher.net[1].weight, rtol=0, atol=1e-6)


class ByItems(nn.Module):
    """Divides the loss by the items of all batches of a step, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        logits = self.net(x)
        items = len(labels) if num_items_in_batch is None else num_items_in_batch
        return {"loss": nn.functional.cross_entropy(logits, labels, reduction="sum") / items, "logits": logits}


def test_accumulated_batches_teach_as_much_as_one(tmp_path: Path) -> None:
    found = []
    for size, accumulated in ((48, 1), (16, 3)):
        model = ByItems()
        torch.manual_seed(5)
        recipe = [Distillation(runs.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))), weight=3.0)]
        runs.train(
            model,
            recipe,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            optim="sgd",
            num_train_epochs=1,
        )
        found.append(model.net[1].weight)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_evaluation_sees_the_compressed_model_and_its_own_loss(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []

    class Evaluating(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
            model = kwargs["model"].eval()
            with torch.no_grad():
                expected = model(**runs.batches(96)[0])["loss"]
            seen.append((metrics["eval_loss"], float(expected)))
            assert fake_quantized(model)["net.3"].input_fake_quant.mode == modes[len(seen) - 1]  # type: ignore[union-attr]
            assert float((model.net[3].weight == 0).float().mean()) >= 0.5

    modes = ["off", "train", "frozen"]
    recipe = [
        Pruning(0.5, "4x4", schedule="one-shot"),
        Distillation("dense", weight=5.0),
        QAT(start=1, freeze_at=2),
    ]
    trainer = runs.make_trainer(
        runs.Classifier(),
        tmp_path,
        Evaluating(),
        eval_strategy="epoch",
        eval_dataset=runs.dataset(),
        per_device_eval_batch_size=96,
    )
    callbacks.CompressionCallback(recipe).attach(trainer)
    trainer.train()
    assert len(seen) == runs.EPOCHS
    assert all(found == pytest.approx(expected, rel=1e-6) for found, expected in seen)


def test_max_steps_give_the_length(tmp_path: Path) -> None:
    callback = runs.train(runs.Classifier(), [Pruning(0.5, "4x4", end=1.5)], tmp_path, max_steps=9)
    assert callback.session.pruners[0].config.end_step == 9
    mask = mask_of(callback.finish().net[3])
    assert mask is not None
    assert float(mask.float().mean()) == 0.5


def test_mixed_precision_leaves_no_wrapper_behind(tmp_path: Path) -> None:
    callback = runs.train(runs.Classifier(), full_recipe(), tmp_path, bf16=True)
    model = callback.finish()
    assert "forward" not in vars(model)
    assert model(**runs.batches()[0])["logits"].dtype == torch.float32


def test_a_self_teacher_follows_a_student_with_projections(tmp_path: Path) -> None:
    losses = [fc.distillation.FeatureLoss("net.0", projection="always")]
    recipe = [Distillation(fc.distillation.SelfDistillation("ema", decay=0.5), losses=losses)]
    callback = runs.train(runs.Classifier(), recipe, tmp_path, num_train_epochs=1)
    distiller = callback.session.distiller
    assert list(distiller.parameters())
    assert not torch.equal(distiller.teacher_model.net[0].weight, network()[0].weight)  # type: ignore[arg-type]
    assert [name for name, _ in callback.finish().named_children()] == ["net"]
