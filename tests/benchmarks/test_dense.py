"""Dense training: it learns, it repeats, it goes on after a kill to the same bits, and it says what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.training import trainer
from benchmarks.training.augment import Augmentation, Normalizer
from benchmarks.training.checkpoint import load_network
from benchmarks.training.data import Dataset, Split, validation_split
from benchmarks.training.dense import main, train_dense
from benchmarks.training.network import NetworkConfig, ResidualCNN, Stage
from benchmarks.training.trainer import TrainConfig, accuracy, learning_rate, make_optimizer, run_epoch
from tests.benchmarks.image_files import write_fashion

TINY = NetworkConfig(stem=8, stages=(Stage(8, residual=True), Stage(16, stride=2)))
CONFIG = TrainConfig(epochs=4, batch=16, peak=0.05, augmentation=Augmentation(1, 0.5, 0.3))


def striped(count: int, seed: int) -> Split:
    """Noise over stripes, whose direction and distance are the class: learnable in a few steps, mirrored or not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    noise = torch.randint(0, 60, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    stripes = torch.zeros(10, 28, 28, dtype=torch.uint8)
    for label in range(10):
        rows = stripes[label] if label < 5 else stripes[label].T
        rows[:: 2 + 2 * (label % 5)] = 190
    return Split(noise + stripes[labels].unsqueeze(1), labels)


@pytest.fixture(scope="module")
def stripes() -> Dataset:
    return Dataset("stripes", striped(192, 0), striped(100, 1))


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(dataset: Dataset, out: Path, config: TrainConfig = CONFIG, **options: Any) -> dict[str, Any]:
    return train_dense(dataset, TINY, config, out, validation_images=32, **options)


def test_learns_and_is_read_back(stripes: Dataset, tmp_path: Path) -> None:
    config = TrainConfig(epochs=6, batch=16, peak=0.05, augmentation=Augmentation(flip=0.5))
    record = train(stripes, tmp_path / "net.safetensors", config, command="the command")
    assert record["test_accuracy"] >= 80  # chance gives 10
    assert json.loads((tmp_path / "net.json").read_text()) == record
    assert record["command"] == "the command"
    assert record["seed"] == 0
    assert len(record["history"]) == 6
    assert {"loss", "seconds", "validation_accuracy"} == set(record["history"][0])
    assert not (tmp_path / "net.part").exists()
    loaded = load_network(tmp_path / "net.safetensors")
    assert not loaded.model.training
    assert loaded.model.config == TINY
    assert round(accuracy(loaded.model, stripes.test, loaded.normalizer), 4) == record["test_accuracy"]


def test_a_finished_run_is_kept(stripes: Dataset, tmp_path: Path) -> None:
    out, config = tmp_path / "net.safetensors", TrainConfig(epochs=1, batch=16)
    record = train(stripes, out, config)
    before = out.read_bytes()
    assert train(stripes, out, config, on_step=dies_at(1)) == record
    with pytest.raises(ValueError, match=r"net\.safetensors is from a run with other training"):
        train(stripes, out, TrainConfig(epochs=2, batch=16))
    assert out.read_bytes() == before
    (tmp_path / "net.json").write_text("[]")
    with pytest.raises(ValueError, match="is from a run with other data"):
        train(stripes, out, config)
    (tmp_path / "net.json").write_text("{")
    with pytest.raises(ValueError, match="is no record of a run"):
        train(stripes, out, config)


class Killed(BaseException):
    """Stands for a kill: nothing in the code catches it."""


def dies_at(step: int) -> Callable[[int, float], None]:
    count = 0

    def on_step(epoch: int, loss: float) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("steps", [(3,), (10,), (15, 12)])  # 10 steps an epoch: before, at and after the first state
def test_goes_on_to_the_same_bits(stripes: Dataset, tmp_path: Path, steps: tuple[int, ...]) -> None:
    train(stripes, tmp_path / "whole.safetensors")
    for step in steps:
        with pytest.raises(Killed):
            train(stripes, tmp_path / "killed.safetensors", on_step=dies_at(step))
    record = train(stripes, tmp_path / "killed.safetensors")
    assert len(record["history"]) == 4
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_the_seed_decides(stripes: Dataset, tmp_path: Path) -> None:
    weights = {}
    for name, seed in (("a", 1), ("b", 2)):
        train(stripes, tmp_path / f"{name}.safetensors", TrainConfig(epochs=1, batch=16, seed=seed))
        weights[name] = load_network(tmp_path / f"{name}.safetensors").model.head.weight
    assert not torch.equal(weights["a"], weights["b"])


def test_another_run_is_not_mixed_in(stripes: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    with pytest.raises(Killed):
        train(stripes, out, on_step=dies_at(12))
    before = out.with_suffix(".part").read_bytes()
    with pytest.raises(ValueError, match="is from a run with other training"):
        train(stripes, out, TrainConfig(epochs=5, batch=16))
    other = Dataset("stripes", stripes.train, striped(100, 2))
    with pytest.raises(ValueError, match="is from a run with other data_sha256"):
        train(other, out)
    with pytest.raises(ValueError, match="is from a run with other limit"):
        train(stripes, out, limit=50)
    assert out.with_suffix(".part").read_bytes() == before
    out.with_suffix(".part").write_bytes(before[:-5])
    with pytest.raises(ValueError, match="is damaged or no training checkpoint"):
        train(stripes, out)


def test_a_loss_that_is_not_finite_stops(stripes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "net.safetensors"
    real = torch.nn.functional.cross_entropy
    calls = 0

    def broken(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*arguments, **options) * (math.nan if calls == 14 else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.functional, "cross_entropy", broken)
        with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1, step 3"):
            train(stripes, out)
    assert not out.exists()
    assert len(train(stripes, out)["history"]) == 4
    train(stripes, tmp_path / "whole.safetensors")
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_learning_rate_by_hand() -> None:
    config = TrainConfig(peak=0.2, warm_up=0.1)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.02 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 90)) for step in range(90)])
    assert learning_rate(TrainConfig(peak=0.2, warm_up=0.0), 0, 7) == pytest.approx(0.2)


def test_decay_is_for_weights_only() -> None:
    model = ResidualCNN(TINY)
    decays = {
        id(p): group["weight_decay"] for group in make_optimizer(model, CONFIG).param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if "norm" in name or name.endswith("bias") else CONFIG.weight_decay), name


def test_normalization_runs_in_float32(stripes: Dataset) -> None:
    model = ResidualCNN(TINY)
    seen: set[torch.dtype] = set()
    model.stem.norm.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    hooks = len(model.stem.norm._forward_pre_hooks)
    convolution: set[torch.dtype] = set()
    model.stem.conv.register_forward_hook(lambda _, __, output: convolution.add(output.dtype))
    run_epoch(model, make_optimizer(model, CONFIG), stripes.train, Normalizer.of(stripes.train.images), CONFIG, 0)
    assert convolution == {torch.bfloat16}
    assert len(model.stem.norm._forward_pre_hooks) == hooks
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_accuracy_counts(stripes: Dataset) -> None:
    right = stripes.test.labels.clone()
    right[:25] = (right[:25] + 1) % 10
    answers = iter(torch.nn.functional.one_hot(right, 10).split(500))
    assert accuracy(lambda _: next(answers), stripes.test, Normalizer((0.0,), (1.0,))) == 75.0
    with pytest.raises(ValueError, match="no images"):
        accuracy(ResidualCNN(TINY), stripes.test.take(torch.arange(0)), Normalizer((0.0,), (1.0,)))


def test_validation_images_are_set_aside() -> None:
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    whole = Split(images, torch.arange(100) % 10)
    left, validation = validation_split(whole, 30, seed=3)
    assert sorted([*left.images.flatten().tolist(), *validation.images.flatten().tolist()]) == list(range(100))
    assert len(validation) == 30
    assert torch.equal(validation_split(whole, 30, seed=3)[1].images, validation.images)
    assert not torch.equal(validation_split(whole, 30, seed=4)[1].images, validation.images)
    with pytest.raises(ValueError, match=r"count must lie in \[0, 99\], got 100"):
        validation_split(whole, 100)


@pytest.mark.parametrize(
    ("fields", "error", "problem"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"batch": 2.0}, TypeError, "batch must be an integer"),
        ({"peak": 0.0}, ValueError, "peak must be positive and finite"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be positive and finite"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must lie in \[0, 1\)"),
        ({"bf16": 1}, TypeError, "bf16 must be True or False"),
        ({"augmentation": None}, TypeError, "augmentation must be an Augmentation"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=f"TrainConfig: {problem}"):
        TrainConfig(**fields)


def test_wrong_calls(stripes: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out must end in .safetensors, got 'net.pt'"):
        train(stripes, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="5 images are fewer than one batch of 16"):
        train(stripes, tmp_path / "net.safetensors", limit=5)
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.training\.dense"):
        load_network(tmp_path / "absent.safetensors")
    with pytest.raises(TypeError, match="images must be uint8"):
        Split(torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"labels must be int64 \[2\]"):
        Split(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "net.safetensors")]) == 1
    assert "error: load_dataset" in capsys.readouterr().err
    write_fashion(tmp_path, train=5_128, test=10)
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "net.safetensors"), "--network", "student"]
    assert main([*options, "--epochs", "1", "--seed", "3", "--threads", "1"]) == 0
    seen = capsys.readouterr()
    assert "test accuracy" in seen.out
    assert "epoch 0: loss" in seen.err
    record = json.loads((tmp_path / "net.json").read_text())
    assert record["command"].startswith("python -m benchmarks.training.dense --data ")
    assert (record["seed"], record["data"], record["threads"]) == (3, "fashion-mnist", 1)
    assert record["machine"]["commit"]
