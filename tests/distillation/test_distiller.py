"""A distiller in a training loop: values, gradients, and what it must not touch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcompress.distillation import (
    AttentionTransferLoss,
    Distiller,
    FeatureLoss,
    LogitsLoss,
    RelationalLoss,
    make_losses,
)
from tests.distillation.models import ConvNet, Tagger, images, same, snapshot, tokens


def step(distiller: Distiller, student: nn.Module, batch: Any) -> dict[str, Tensor]:
    with distiller.watching():
        output = student(**batch) if isinstance(batch, dict) else student(batch)
    return distiller.loss(student, batch, output)


def test_parts_are_what_the_losses_give_and_add_up() -> None:
    teacher, student, x = ConvNet(8, 0).eval(), ConvNet(4, 1, stride=2).eval(), images()
    losses = [LogitsLoss(2.0, weight=0.5), FeatureLoss("conv2", weight=3.0), FeatureLoss("relu", "conv1"), "relational"]
    distiller = Distiller(teacher, losses).bind(student, x)
    parts = step(distiller, student, x)
    assert list(parts) == ["total", "logits", "feature", "feature_2", "relational"]

    p, q = (F.softmax(m(x) / 2.0, 1) for m in (teacher, student))
    assert torch.allclose(parts["logits"], 0.5 * 4.0 * (p * (p / q).log()).sum(1).mean(), rtol=1e-5)
    hint = teacher.conv2(teacher.relu(teacher.bn1(teacher.conv1(x))))
    own = student.conv2(student.relu(student.bn1(student.conv1(x))))
    weight, bias = (value for name, value in distiller.state_dict().items() if "projections.feature.layer" in name)
    projected = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], own) + bias[:, None, None]
    assert projected.shape == (4, 8, 4, 4)
    pooled = hint.reshape(4, 8, 4, 2, 4, 2).mean((3, 5))
    assert torch.allclose(parts["feature"], 3.0 * (projected - pooled).square().mean(), rtol=1e-5)
    assert torch.allclose(parts["total"], sum((parts[k] for k in list(parts)[1:]), torch.zeros(())), rtol=1e-6)
    assert distiller.compared["feature_2"] == ("relu", "conv1")


def test_the_teacher_and_the_random_numbers_are_untouched() -> None:
    teacher, student = ConvNet(8, 0), ConvNet(4, 1)
    teacher.pool.eval()  # modes are put back module by module
    teacher.fc.weight.requires_grad_(False)
    distiller = Distiller(teacher, ["logits", "feature", "attention", "relational"])
    before, student_before = snapshot(teacher), snapshot(student)
    distiller.bind(student, images())
    assert same(teacher, before)
    assert same(student, student_before)  # BatchNorm's statistics too, although it is in training mode

    with distiller.watching():
        output = student(images())
    assert not any(m._forward_hooks for m in student.modules())
    before["rng"] = torch.get_rng_state()  # the student's dropout has drawn some
    total = distiller.loss(student, images(), output)["total"]
    assert same(teacher, before)
    total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is not None for p in distiller.parameters())


def test_the_teacher_runs_in_eval_mode() -> None:
    teacher, student, x = ConvNet(8, 0).train(), ConvNet(4, 1).eval(), images()
    parts = step(Distiller(teacher).bind(student, x), student, x)
    assert parts["logits"].item() == LogitsLoss()(student(x), copy.deepcopy(teacher).eval()(x)).item()


def test_a_teacher_that_draws_random_numbers_leaves_the_students_alone() -> None:
    class Noisy(ConvNet):
        """Adds noise in eval mode too."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    teacher, student = Noisy(8, 0), ConvNet(4, 1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    distiller = Distiller(teacher).bind(student, images())
    assert torch.equal(torch.get_rng_state(), before)
    step(distiller, student.eval(), images())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_distilled_student_learns_the_teacher() -> None:
    teacher, student, x = ConvNet(8, 0).eval(), ConvNet(4, 1), images(count=16)
    student.dropout.p = 0.0
    distiller = Distiller(teacher, ["logits", FeatureLoss(weight=10.0)]).bind(student, x)
    optimizer = torch.optim.Adam([*student.parameters(), *distiller.parameters()], lr=0.02)
    history = []
    for _ in range(60):
        parts = step(distiller, student, x)
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in parts.items()})
    assert history[-1]["logits"] < 0.2 * history[0]["logits"]
    assert history[-1]["feature"] < 0.5 * history[0]["feature"]


def test_autocast_reaches_the_teacher() -> None:
    teacher, student, x = ConvNet(8, 0).eval(), ConvNet(4, 1).eval(), images()
    distiller = Distiller(teacher).bind(student, x)
    exact = step(distiller, student, x)["logits"].item()
    with torch.autocast("cpu", torch.bfloat16):
        value = step(distiller, student, x)["logits"].item()
        expected = LogitsLoss()(student(x), teacher(x)).item()
    assert value == expected
    assert value != exact


def test_projections_start_from_the_seed_only() -> None:
    teacher, student, x = ConvNet(8, 0), ConvNet(4, 1), images()

    def start(seed: int) -> Tensor:
        return torch.cat([p.flatten() for p in Distiller(teacher, "feature", seed=seed).bind(student, x).parameters()])

    first = start(0)
    torch.manual_seed(99)
    assert torch.equal(first, start(0))
    assert not torch.equal(first, start(1))
    assert float(first.detach().abs().max()) <= 4**-0.5  # nn.Linear's bound for 4 inputs
    assert not list(Distiller(ConvNet(4, 0), "feature").bind(student, x).parameters())  # equal widths need none
    assert list(Distiller(ConvNet(4, 0), FeatureLoss(projection="always")).bind(student, x).parameters())


def test_masks_of_the_batch() -> None:
    teacher, student, batch = Tagger(8, 0).eval(), Tagger(6, 1).eval(), tokens()
    kept = batch["attention_mask"].bool()
    s, t = (m(**batch)["logits"] for m in (student, teacher))
    parts = step(Distiller(teacher, ["logits", "feature"]).bind(student, batch), student, batch)
    assert torch.allclose(parts["logits"], LogitsLoss()(s[kept], t[kept]), rtol=1e-6)
    labelled = {**batch, "labels": torch.where(kept, 0, -100)}  # 0 is a label, not a masked position
    by_label = Distiller(teacher, [LogitsLoss(mask="labels", ignore_index=-100)]).bind(student, labelled)
    assert step(by_label, student, labelled)["logits"].item() == parts["logits"].item()
    whole = {"input_ids": batch["input_ids"]}
    everything = step(Distiller(teacher).bind(student, whole), student, whole)["logits"]
    assert torch.allclose(everything, LogitsLoss()(s.flatten(0, 1), t.flatten(0, 1)), rtol=1e-6)

    distiller = Distiller(teacher, [LogitsLoss(mask="labels")]).bind(student, batch)
    with pytest.raises(ValueError, match=r"mask 'labels' must be a tensor in the batch, which has 'input_ids', 'att"):
        step(distiller, student, batch)
    with pytest.raises(ValueError, match=r"mask 'labels' has shape \[3\], .* \[3, 6, 4\]; it must be \[3, 6\]"):
        step(distiller, student, {**batch, "labels": torch.zeros(3)})


def test_other_batch_sizes_and_a_forward_fn() -> None:
    teacher, student = ConvNet(8, 0).eval(), ConvNet(4, 1)

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        y: Tensor = model(batch["image"])
        return y

    distiller = Distiller(teacher, ["logits", "feature"]).bind(student, {"image": images()}, forward)
    for count in (1, 7):
        batch = {"image": images(count=count)}
        student.eval()
        with distiller.watching():
            output = forward(student, batch)
        loss = distiller.loss(student, batch, output)
        assert loss["logits"].item() == LogitsLoss()(output, teacher(batch["image"])).item()


def test_losses_by_name() -> None:
    loss = FeatureLoss("a")
    assert make_losses(["logits", loss, "relational"], 2.0) == (LogitsLoss(2.0), loss, RelationalLoss())
    assert make_losses("attention") == (AttentionTransferLoss(),)
    assert make_losses(loss) == (loss,)
    assert Distiller(ConvNet(4, 0), "logits", temperature=3.0).losses == (LogitsLoss(3.0),)
    with pytest.raises(ValueError, match=r"losses entry 'feautre' is unknown; .*did you mean 'feature'\?"):
        make_losses(["feautre"])
    with pytest.raises(ValueError, match="losses is empty; give at least one of 'logits', "):
        make_losses([])
    with pytest.raises(TypeError, match=r"losses holds the class LogitsLoss, give LogitsLoss\(\); allowed are"):
        make_losses([LogitsLoss])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="losses must be names and loss objects, got 3"):
        make_losses(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be a number > 0, got 0"):
        make_losses(["logits"], 0)


def test_state_dict_restores_the_projections() -> None:
    teacher, student, x = ConvNet(8, 0), ConvNet(4, 1), images()
    one, two = (Distiller(teacher, "feature", seed=seed).bind(student, x) for seed in (0, 1))
    state = one.state_dict()
    assert list(state) == ["projections.feature.layer.weight", "projections.feature.layer.bias", "updates"]
    two.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert float(state["projections.feature.layer.weight"].abs().max()) > 0  # a copy

    before = two.state_dict()
    bias = "projections.feature.layer.bias"
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({k: v for k, v in state.items() if k != bias}, ValueError, f"'{bias}' is missing; bind with the losses"),
        ({**state, f"{bias}s": state[bias]}, ValueError, f"'{bias}s' is unknown; did you mean '{bias}'"),
        ({**state, bias: torch.zeros(3)}, ValueError, r"is torch.float32 \[3\], expected torch.float32 \[8\]"),
        ({**state, bias: state[bias].double()}, ValueError, r"is torch.float64 \[8\]"),
        ({**state, "updates": torch.tensor(-1)}, ValueError, "'updates' must be one int64 number"),
        ({**state, bias: [0.0] * 8}, TypeError, "state must map names to tensors"),
    ]
    for broken, error, message in wrong:
        with pytest.raises(error, match=message):
            two.load_state_dict(broken)
    assert all(torch.equal(before[name], value) for name, value in two.state_dict().items())


def test_distiller_is_exact_about_its_gradient() -> None:
    teacher, student = ConvNet(4, 0).double().eval(), ConvNet(3, 1).double().eval()
    x = images(count=2).double()[:, :, :4, :4]
    distiller = Distiller(teacher, ["logits", "feature", "attention"]).bind(student, x)

    def total(weight: Tensor) -> Tensor:
        with distiller.watching():
            output = torch.func.functional_call(student, {"conv1.weight": weight}, (x,))
        return distiller.loss(student, x, output)["total"]

    assert torch.autograd.gradcheck(total, (student.conv1.weight.detach().clone().requires_grad_(),))
