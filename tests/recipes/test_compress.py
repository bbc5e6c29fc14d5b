"""`compress` and `distill`: what happens when, what comes out, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcompress as fc
from fastcompress.nn import QuantConv2d, SparseQuantConv2d
from fastcompress.pruning import mask_of, masked
from fastcompress.quantization import fake_quantized
from fastcompress.recipes import QAT, Distillation, Phase, Pruning, Session, check_recipe, phases_of

from .small import CLASSES, full_recipe, loader, network, same_state

STEPS = 6


def _compress(recipe: Any, **options: Any) -> fc.recipes.CompressionResult:
    return fc.compress(options.pop("model", None) or network(), recipe, loader(), **{"progress": False, **options})


def test_all_stages_at_once_end_in_the_integers_that_training_simulated() -> None:
    result = _compress(full_recipe(), epochs=3, only_if_faster=False)
    layers = dict(result.model.named_modules())
    assert isinstance(layers["0"], QuantConv2d)
    assert isinstance(layers["3"], SparseQuantConv2d)
    simulated = fake_quantized(result.trained)
    for name in ("0", "3"):
        finished: Any = layers[name]
        quantizer: Any = simulated[name].input_fake_quant
        assert finished.input_scale == pytest.approx(float(quantizer.scale), rel=0)
        assert int(finished.input_zero_point) == int(quantizer.zero_point)
    images = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        result.trained.eval()
        torch.testing.assert_close(result.model(images), result.trained(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        None,
    ],
)
def test_masks_only_ever_shrink(optimizer: Any) -> None:
    seen: list[Tensor] = []

    def watch(model: nn.Module) -> float:
        mask = mask_of(model.get_submodule("3"))
        if mask is None:
            return 0.0  # the dense model
        seen.append(mask.clone())
        weight: Any = model.get_submodule("3").weight
        assert bool((weight[~mask] == 0).all())
        return 0.0

    _compress(full_recipe(), epochs=3, optimizer=optimizer, eval_fn=watch, convert=False)
    per_epoch = seen[:3]
    assert all(not bool((later & ~earlier).any()) for earlier, later in itertools.pairwise(per_epoch))
    assert 1.0 - per_epoch[-1].float().mean().item() == pytest.approx(0.75)


def test_history_follows_the_schedule() -> None:
    pruning = Pruning(0.75, pattern="4x4", end=2, frequency=1)
    result = _compress([pruning], epochs=3, eval_fn=lambda model: 0.5)
    rows = result.history.rows
    assert [row.step for row in rows] == [6, 12, 18]
    assert [row.score for row in rows] == [0.5] * 3
    halfway = 0.75 - 0.75 * 0.5**3  # cubic; 144 blocks in the convolution, 4 in the head
    assert rows[0].sparsity == pytest.approx((round(144 * halfway) + round(4 * halfway)) / 148)
    assert rows[1].sparsity == rows[2].sparsity == pytest.approx(0.75)
    assert rows[2].learning_rate == pytest.approx(1e-3 * fc.recipes.optimizers.LEARNING_RATES["cosine"](17 / 18))


def test_losses_are_means_and_the_window_of_distillation_holds() -> None:
    recipe = [Distillation("dense", start=1, end=2, weight=0.5, task_weight=2.0)]
    result = _compress(recipe, epochs=3, convert=False)
    first, second, third = (row.losses for row in result.history.rows)
    assert set(first) == set(third) == {"task", "total"}
    assert first["total"] == pytest.approx(first["task"])
    assert second["total"] == pytest.approx(2.0 * second["task"] + 0.5 * second["logits"], rel=1e-5)


def test_a_teacher_is_left_as_it_was() -> None:
    teacher = network().train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    fc.distill(network(), teacher, loader(), ["logits", "feature"], epochs=1, progress=False)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_rounding_starts_and_freezes_at_its_steps() -> None:
    states: list[str] = []
    model = network()
    phase = Phase(0, 2, (QAT("W8A8", start=0.5, freeze_at=1.5),))
    session = Session(model, phase, STEPS, 2, next(iter(loader())))
    for step in range(2 * STEPS):
        session.before_step(step)
        states.append(str(fake_quantized(model)["3"].input_fake_quant))
        model(torch.rand(4, 1, 8, 8))
    kinds = ["off" if "off" in s else "frozen" if "frozen" in s else "train" for s in states]
    assert kinds == ["off"] * 3 + ["train"] * 6 + ["frozen"] * 3


def test_a_loop_of_ones_own_gives_the_same_weights() -> None:
    from fastcompress.recipes.optimizers import LEARNING_RATES, set_rate
    from fastcompress.recipes.seeding import own_random_numbers, seed_step

    wanted = _compress(full_recipe(), epochs=3, convert=False).trained
    model = network()
    data = fc.recipes.data.TrainData(loader(), None, 0)
    with own_random_numbers():
        batch = data.first_batch()
        dense = network().eval()
        session = Session(model, Phase(0, 3, tuple(full_recipe())), STEPS, 3, batch, dense=dense)
        parameters = list(session.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.01},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
        session.bind_optimizer(optimizer)
        model.train()
        for epoch in range(3):
            batches = data.epoch(epoch)
            for step in range(epoch * STEPS, (epoch + 1) * STEPS):
                seed_step(0, step)
                batch = next(batches)
                set_rate(optimizer, LEARNING_RATES["cosine"](step / 18))
                session.before_step(step)
                optimizer.zero_grad()
                with session.watching():
                    output = model(batch[0])
                total, _ = session.loss(nn.functional.cross_entropy(output, batch[1]), batch, output)
                total.backward()  # type: ignore[no-untyped-call]
                session.before_update()
                optimizer.step()
                session.after_step()
    assert same_state(session.finish(), wanted)


def test_an_optimizer_lends_its_groups() -> None:
    model = network()
    head = list(model[9].parameters())
    rest = [p for p in model.parameters() if all(p is not h for h in head)]
    optimizer = torch.optim.SGD([{"params": rest, "lr": 0.0}, {"params": head, "lr": 0.5}], lr=0.1)
    result = _compress([Distillation("dense")], model=model, epochs=1, optimizer=optimizer, convert=False)
    moved = {
        n: not torch.equal(p, q)
        for (n, p), q in zip(model.named_parameters(), result.trained.parameters(), strict=True)
    }
    assert moved == {name: name.startswith("9.") for name in moved}


class _Output(dict[str, Tensor]):
    """What a Hugging Face model returns."""

    @property
    def loss(self) -> Tensor:
        return self["loss"]

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class _Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> _Output:
        logits = self.body(x)
        found = {"logits": logits}
        if labels is not None:
            found["loss"] = nn.functional.cross_entropy(logits, labels)
        return _Output(found)


def test_batches_may_be_dictionaries() -> None:
    torch.manual_seed(0)
    data = [{"x": torch.randn(8, 8), "labels": torch.randint(0, CLASSES, (8,))} for _ in range(4)]
    result = fc.compress(_Dictionary(), [Pruning(0.5, pattern="1x4", end=1)], data, epochs=2, progress=False)
    assert result.history.rows[0].losses["task"] > 0
    assert list(masked(result.trained)) == ["body"]


def test_an_empty_recipe_is_plain_training() -> None:
    result = _compress([], epochs=1)
    assert masked(result.trained) == {}
    assert not same_state(result.trained, network())


def test_channels_are_removed_before_rounding_starts() -> None:
    pytest.importorskip("torch_pruning")
    recipe = [Pruning(0.5, "channel", end=1, round_to=4), QAT(start=1)]
    result = _compress(recipe, epochs=2, only_if_faster=False)
    layer: Any = result.trained.get_submodule("3")
    assert layer.weight.shape == (8, 8, 3, 3)
    assert isinstance(result.model.get_submodule("3"), QuantConv2d)
    assert len(result.history) == 2


REFUSED: list[tuple[Any, str]] = [
    ([QAT(), QAT()], "2 QAT stages, which would overlap"),
    ([Distillation("dense"), Distillation("dense")], "2 Distillation stages"),
    ([Pruning(0.5), Pruning(0.9, "4x4")], "2 Pruning stages overlap"),
    ([Pruning(0.5, "channel", end=2), QAT(start=1)], "QAT starts at epoch 1, but pattern 'channel' removes"),
    ([Pruning(0.5, "channel", end=1), Pruning(0.5, "channel", start=1, end=2)], "removes channels twice"),
    ([Pruning(0.5, start=5, end=6)], r"Pruning: start=5 is after the end of the run, which has 3 epochs"),
    ([QAT(start=1, freeze_at=9)], r"QAT: freeze_at=9 is after the end"),
]


@pytest.mark.parametrize(("recipe", "message"), REFUSED)
def test_stages_that_exclude_each_other(recipe: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _compress(recipe, epochs=3)


def test_phases_are_cut_where_channels_go() -> None:
    channels, qat, teacher = Pruning(0.5, "channel", end=1.2), QAT(start=2), Distillation("dense")
    stages = check_recipe([channels, qat, teacher], 4)
    first, second = phases_of(stages, 4)
    assert (first.start, first.end, first.stages) == (0.0, 2.0, (teacher, channels))
    assert (second.start, second.end, second.stages) == (2.0, 4, (qat, teacher))


def test_errors_name_the_argument() -> None:
    def once() -> Iterator[Any]:
        yield from loader()

    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"epochs": 0}, ValueError, "epochs must be a positive whole number, got 0"),
        ({"max_drop": 0.1}, ValueError, "max_drop is a drop of the score that eval_fn gives; pass eval_fn"),
        ({"max_drop": -1.0, "eval_fn": lambda m: 0.0}, ValueError, "max_drop must be zero or more"),
        ({"learning_rate": "linear"}, ValueError, "learning_rate 'linear' is unknown"),
        ({"optimizer": 3}, TypeError, "optimizer must be a function"),
        ({"optimizer": torch.optim.SGD(network().parameters(), 0.1)}, ValueError, "none of the model's parameters"),
        ({"eval_fn": lambda m: "good"}, TypeError, "eval_fn must return a number"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be a positive"),
    ]
    for options, kind, message in wrong:
        with pytest.raises(kind, match=message):
            _compress([Pruning(0.5, "4x4", end=1)], **{"epochs": 1, **options})
    recipe = [Pruning(0.5, "4x4", end=1)]
    for data, kind, message in (
        ([], ValueError, "train_data is empty"),
        (once(), TypeError, "train_data is an iterator"),
        (torch.zeros(3), TypeError, "train_data must be an iterable"),
        ([torch.zeros(2, 1, 8, 8)], TypeError, r"a batch is a pair \(x, y\)"),
    ):
        with pytest.raises(kind, match=message):
            fc.compress(network(), recipe, data, epochs=1, progress=False)
    with pytest.raises(TypeError, match="a recipe consists of"):
        _compress(["prune"], epochs=1)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        fc.compress(3, recipe, loader(), epochs=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="teacher must be"):
        Distillation(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="end must not be before start=3"):
        Pruning(0.5, start=3, end=1)
    with pytest.raises(ValueError, match="freeze_at must not be before start=3"):
        QAT(start=3, freeze_at=1)


def test_data_that_ends_early_says_where() -> None:
    with pytest.raises(ValueError, match="ended after 6 batches of epoch 1, expected 9"):
        _compress([], epochs=1, steps_per_epoch=9)


def test_taps_that_do_not_exist_are_named() -> None:
    tap = fc.distillation.FeatureLoss("5", "55")
    with pytest.raises(ValueError, match="'55'"):
        _compress([Distillation("dense", losses=(tap,))], epochs=1)
