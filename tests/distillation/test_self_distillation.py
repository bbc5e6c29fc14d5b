"""Self-teachers follow the student as their formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcompress.distillation import Distiller, FeatureLoss, LogitsLoss, SelfDistillation
from tests.distillation.models import ConvNet, images


def change(student: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(value)


def test_ema_is_the_weighted_sum_of_the_past() -> None:
    student = ConvNet(4, 1).double()
    start = {name: p.detach().clone() for name, p in student.named_parameters()}
    distiller = Distiller(SelfDistillation("ema", decay=0.75)).bind(student, images().double())
    values = [1.0, -2.0, 0.5]
    for value in values:
        change(student, value)
        distiller.update(student)
    teacher = distiller.teacher_model
    assert teacher is not None
    constant = sum(0.25 * 0.75 ** (len(values) - 1 - i) * value for i, value in enumerate(values))
    for name, parameter in teacher.named_parameters():
        assert torch.allclose(parameter, 0.75**3 * start[name] + constant, rtol=1e-14, atol=1e-15)
        assert not parameter.requires_grad


def test_buffers_are_copied_and_the_loss_compares_with_the_average() -> None:
    student, x = ConvNet(4, 1), images()
    distiller = Distiller(SelfDistillation(decay=0.5)).bind(student, x)
    student(x)
    change(student, 0.1)
    distiller.update(student)
    teacher = distiller.teacher_model
    assert teacher is not None
    assert student.bn1.num_batches_tracked.item() == 1
    assert all(torch.equal(b, dict(student.named_buffers())[name]) for name, b in teacher.named_buffers())
    student.eval()
    output = student(x)
    assert distiller.loss(student, x, output)["total"].item() == LogitsLoss()(output, teacher.eval()(x)).item()


def test_snapshots() -> None:
    student = ConvNet(4, 1)
    first = student.fc.weight.detach().clone()
    fixed, moving = (
        Distiller(SelfDistillation("snapshot", every=every)).bind(student, images()) for every in (None, 2)
    )
    seen = []
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        change(student, value)
        for distiller in (fixed, moving):
            distiller.update(student)
            assert distiller.teacher_model is not None
        assert torch.equal(fixed.teacher_model.fc.weight, first)  # type: ignore[union-attr,arg-type]
        seen.append(moving.teacher_model.fc.weight[0, 0].item())  # type: ignore[union-attr,index]
    assert seen == [first[0, 0].item(), 2.0, 2.0, 4.0, 4.0]


def test_deeper_layers_teach_without_a_gradient() -> None:
    student, x = ConvNet(4, 1, stride=2).eval(), images()
    distiller = Distiller(SelfDistillation("deeper"), FeatureLoss("conv1", "conv2")).bind(student, x)
    assert distiller.teacher_model is None
    with distiller.watching():
        output = student(x)
    loss = distiller.loss(student, x, output)["total"]
    shallow = student.conv1(x)
    deep = student.conv2(student.relu(student.bn1(student.conv1(x))))
    expected = (shallow.reshape(4, 4, 4, 2, 4, 2).mean((3, 5)) - deep).square().mean()
    assert torch.allclose(loss, expected, rtol=1e-5)
    loss.backward()
    assert student.conv1.weight.grad is not None
    assert student.conv2.weight.grad is None
    distiller.update(student)  # nothing to update, no error


def test_state_dict_resumes_the_average() -> None:
    student = ConvNet(4, 1)
    config = SelfDistillation("snapshot", every=2)
    one = Distiller(config).bind(student, images())
    for value in (1.0, 2.0, 3.0):
        change(student, value)
        one.update(student)
    state = {name: value.clone() for name, value in one.state_dict().items()}
    two = Distiller(config).bind(student, images())
    two.load_state_dict(state)
    change(student, 4.0)
    for distiller in (one, two):
        distiller.update(student)
    after = one.state_dict()
    assert after["updates"].item() == 4
    assert after["teacher.fc.weight"][0, 0].item() == 4.0
    assert all(torch.equal(after[name], value) for name, value in two.state_dict().items())


def test_a_student_whose_layers_changed() -> None:
    student = ConvNet(4, 1)
    distiller = Distiller(SelfDistillation()).bind(student, images())
    before = distiller.state_dict()
    change(student, 1.0)
    student.fc = nn.Linear(4, 6)
    with pytest.raises(
        ValueError, match=r"layers changed since bind \('fc.weight' is not what it was\); .* bind again"
    ):
        distiller.update(student)
    student.fc = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"'fc.bias' is not what it was"):
        distiller.update(student)
    assert all(torch.equal(before[name], value) for name, value in distiller.state_dict().items())
