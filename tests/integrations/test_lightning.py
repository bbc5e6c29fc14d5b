"""A recipe in Lightning's Trainer: the same bits as the package's own loop, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fastcompress as fc
from fastcompress.nn import QuantConv2d, SparseQuantConv2d
from fastcompress.pruning import mask_of
from fastcompress.quantization import fake_quantized
from fastcompress.recipes import QAT, Distillation, Pruning
from tests.recipes.small import full_recipe, network, same_state, samples

pl = pytest.importorskip("lightning.pytorch", reason="needs the extra lightning")
callbacks = pytest.importorskip("fastcompress.integrations.lightning")

EPOCHS, STEPS = 3, 6

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*num_workers.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]


class Module(pl.LightningModule):  # type: ignore[misc,name-defined]
    """Returns a dict or a tensor, and counts its steps."""

    def __init__(self, as_dict: bool = True) -> None:
        super().__init__()
        self.net = network()
        self.as_dict = as_dict
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return {"loss": loss, "kept": 1} if self.as_dict else loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def data() -> DataLoader[Any]:
    return DataLoader(samples(), 16)


def fit(module: Any, *using: Any, ckpt_path: Any = None, **options: Any) -> None:
    options = {"max_epochs": EPOCHS, "logger": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=len(using) > 1,
        callbacks=list(using),
        **options,
    )
    trainer.fit(module, data(), ckpt_path=ckpt_path)


def wider() -> nn.Sequential:
    """A teacher whose features have another width, so that projections are trained."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 4))


def projecting() -> list[fc.recipes.Stage]:
    losses = (fc.distillation.FeatureLoss("3", "0"), "logits")
    return [Distillation(wider(), losses=losses, start=1), QAT(method="lsq")]


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("recipe", [full_recipe, projecting])
def test_the_same_bits_as_compress(recipe: Any, as_dict: bool) -> None:
    callback = callbacks.CompressionCallback(recipe(), network="net")
    module = Module(as_dict)
    fit(module, callback)
    trained = callback.finish()
    wanted = fc.compress(
        network(),
        recipe(),
        data(),
        epochs=EPOCHS,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
        learning_rate="constant",
        convert=False,
        progress=False,
    ).trained
    assert trained is module.net
    assert same_state(trained, wanted)
    assert [name for name, _ in module.named_children()] == ["net"]
    assert "training_step" not in vars(module)
    fast = fc.convert(trained.eval(), example_inputs=samples()[0][0][None], only_if_faster=False)
    assert isinstance(fast[0], QuantConv2d)
    assert isinstance(fast[3], SparseQuantConv2d if recipe is full_recipe else QuantConv2d)


class Watching(callbacks.CompressionCallback):  # type: ignore[misc,name-defined]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.masks: list[Tensor] = []
        self.modes: list[str] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        mask = mask_of(pl_module.net[3])
        assert mask is not None
        self.masks.append(mask.clone())
        self.modes.append(fake_quantized(pl_module.net)["3"].input_fake_quant.mode)  # type: ignore[union-attr]


def test_steps_are_those_of_the_optimizer_under_accumulation() -> None:
    """Two batches a step: three steps an epoch; masks change with every second batch."""
    recipe = [Pruning(0.5, "4x4", schedule="linear", end=2, frequency=1), QAT(start=1, freeze_at=2)]
    callback = Watching(recipe, network="net")
    fit(Module(), callback, accumulate_grad_batches=2)
    sparsity = [1.0 - float(mask.float().mean()) for mask in callback.masks]
    steps = [number // 2 for number in range(1, EPOCHS * STEPS + 1)]
    blocks = 16 * 9
    assert sparsity == [pytest.approx(round(blocks * 0.5 * min(step, 6) / 6) / blocks) for step in steps]
    assert all(not bool((later & ~earlier).any()) for earlier, later in itertools.pairwise(callback.masks))
    assert callback.modes == ["off"] * 6 + ["train"] * 6 + ["frozen"] * 6


def test_resumed_from_lightnings_checkpoint(tmp_path: Path) -> None:
    whole = callbacks.CompressionCallback(full_recipe(), network="net")
    keeper = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    fit(Module(), whole, keeper)
    again = callbacks.CompressionCallback(full_recipe(), network="net")
    module = Module()
    fit(module, again, ckpt_path=tmp_path / "step=12.ckpt")
    assert module.steps == EPOCHS * STEPS - 12
    assert same_state(whole.finish(), again.finish())


def test_the_teachers_loss_is_added() -> None:
    """With nothing but the teacher's loss, a perfect student stays as it is: the gradient is zero."""

    class Plain(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    student = Plain()
    student.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    student.net.load_state_dict(teacher.state_dict())
    recipe = [Distillation(teacher, losses=["logits"], task_weight=0.0)]
    callback = callbacks.CompressionCallback(recipe, network="net")
    fit(student, callback, max_epochs=1)
    torch.testing.assert_close(student.net[1].weight, teacher[1].weight, rtol=0, atol=1e-6)


def test_max_steps_give_the_length() -> None:
    callback = callbacks.CompressionCallback([Pruning(0.5, "4x4", end=1.5)], network="net")
    fit(Module(), callback, max_epochs=-1, max_steps=9)
    assert callback.session is not None
    assert callback.session.pruners[0].config.end_step == 9
    mask = mask_of(callback.finish()[3])
    assert mask is not None
    assert float(mask.float().mean()) == 0.5


class _Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class _Narrow(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[9].parameters(), 0.1)


class _Forward(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net.forward(batch[0]), batch[1])


REFUSED: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
    (_Manual, [Pruning(0.5)], {}, ValueError, "manual optimization hides the steps"),
    (_Narrow, [QAT(method="lsq")], {}, ValueError, "configure_optimizers leaves out"),
    (_Forward, [Distillation("dense")], {}, RuntimeError, "did not call self.net as a function"),
    (Module, [Pruning(0.5, "channel", end=1)], {}, ValueError, "pattern 'channel' makes a smaller model"),
    (Module, [QAT(start=7)], {}, ValueError, "QAT: start=7 is after the end"),
    (Module, [Pruning(0.5)], {"max_epochs": -1}, ValueError, "a run of known length"),
]


@pytest.mark.parametrize(("kind", "recipe", "options", "error", "message"), REFUSED)
def test_refused(kind: Any, recipe: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(kind(), callbacks.CompressionCallback(recipe, network="net"), **options)


def test_refused_by_name() -> None:
    with pytest.raises(ValueError, match="network 'body' is no submodule of Module; it has 'net'"):
        fit(Module(), callbacks.CompressionCallback([Pruning(0.5)], network="body"))
    with pytest.raises(TypeError, match="a recipe consists of"):
        callbacks.CompressionCallback([3])
    with pytest.raises(TypeError, match="network must be the name"):
        callbacks.CompressionCallback([], network=3)
    with pytest.raises(RuntimeError, match=r"trainer\.fit has not begun"):
        callbacks.CompressionCallback([Pruning(0.5)]).finish()


class _Plain(Module):
    """Calls itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def test_a_module_is_its_own_network_by_default() -> None:
    callback = callbacks.CompressionCallback(full_recipe(), example_batch=next(iter(data())))
    module = _Plain()
    fit(module, callback)
    assert callback.finish() is module
    assert sorted(fake_quantized(module)) == ["net.0", "net.3", "net.9"]


def test_a_self_teacher_follows_a_module_with_projections() -> None:
    losses = [fc.distillation.FeatureLoss("net.0", projection="always")]
    recipe = [Distillation(fc.distillation.SelfDistillation("ema", decay=0.5), losses=losses)]
    callback = callbacks.CompressionCallback(recipe)
    fit(_Plain(), callback, max_epochs=1)
    assert callback.session is not None
    assert callback.session.distiller is not None
    teacher: Any = callback.session.distiller.teacher_model
    assert not torch.equal(teacher.net[0].weight, network()[0].weight)  # type: ignore[arg-type]
