"""What a distiller refuses, and that nothing has changed then."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from fastcompress.distillation import Distiller, FeatureLoss, LogitsLoss, SelfDistillation, TeacherCache
from tests.distillation.models import ConvNet, images, same, snapshot


def bound(losses: Any = ("logits", "feature")) -> tuple[Distiller, ConvNet]:
    student = ConvNet(4, 1)
    return Distiller(ConvNet(8, 0), losses).bind(student, images()), student


def test_missing_or_wrong_teacher() -> None:
    with pytest.raises(TypeError, match=r"Distiller: teacher must be .* got None; give the .* or SelfDistillation\(\)"):
        Distiller(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"cache must be a TeacherCache or None, got 'here'; use TeacherCache"):
        Distiller(ConvNet(4, 0), cache="here")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"seed must be a whole number >= 0, got 0.5"):
        Distiller(ConvNet(4, 0), seed=0.5)  # type: ignore[arg-type]
    student = ConvNet(4, 1)
    with pytest.raises(ValueError, match=r"teacher and student are the same model; .*SelfDistillation"):
        Distiller(student).bind(student, images())
    sharing = copy.deepcopy(student)
    sharing.fc = student.fc
    with pytest.raises(ValueError, match=r"share the parameter 'fc.weight', which is being trained"):
        Distiller(sharing).bind(student, images())


def test_teacher_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"the teacher is on meta, the student on cpu; move it: teacher.to\('cpu'\)"):
        Distiller(ConvNet(8, 0).to("meta")).bind(ConvNet(4, 1), images())
    distiller, student = bound()
    assert distiller.teacher_model is not None
    with distiller.watching():
        output = student(images())
    distiller.teacher_model.to("meta")
    with pytest.raises(ValueError, match="the teacher is on meta"):
        distiller.loss(student, images(), output)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (FeatureLoss("conv9"), r"Taps: the student has no module 'conv9'; did you mean 'conv2' or 'conv1'\?"),
        (FeatureLoss("conv2", "convv2"), r"Taps: the teacher has no module 'convv2'; did you mean 'conv2'"),
        (FeatureLoss("spare"), r"Taps: student module 'spare' did not run in the last forward"),
        (FeatureLoss("conv2", "spare"), r"Taps: teacher module 'spare' did not run in the last forward"),
    ],
)
def test_taps_not_found_or_never_run(loss: FeatureLoss, message: str) -> None:
    teacher, student = ConvNet(8, 0), ConvNet(4, 1)
    for model in (teacher, student):
        model.add_module("spare", nn.Linear(2, 2))
    before = snapshot(teacher), snapshot(student)
    with pytest.raises((ValueError, RuntimeError), match=message):
        Distiller(teacher, loss).bind(student, images())
    assert same(teacher, before[0])
    assert same(student, before[1])


def test_an_earlier_binding_survives_a_failed_one() -> None:
    distiller, student = bound()
    with pytest.raises(ValueError, match="same classes"):
        distiller.bind(ConvNet(4, 1, classes=3), images())
    with distiller.watching():
        output = student(images())
    assert bool(torch.isfinite(distiller.loss(student, images(), output)["total"]))


def test_not_bound() -> None:
    distiller = Distiller(ConvNet(8, 0))
    student = ConvNet(4, 1)
    for call in (
        lambda: distiller.loss(student, images(), None),
        lambda: distiller.update(student),
        lambda: distiller.parameters(),
        lambda: distiller.state_dict(),
        lambda: distiller.load_state_dict({}),
        lambda: distiller.compared,
        lambda: distiller.watching().__enter__(),
    ):
        with pytest.raises(RuntimeError, match=r"no student yet; call bind\(student, example_batch\) first"):
            call()


def test_the_student_must_be_watched_anew_each_step() -> None:
    distiller, student = bound()
    output = student(images())
    with pytest.raises(RuntimeError, match=r"module 'conv2' has not been seen running since the last call; run the"):
        distiller.loss(student, images(), output)
    with distiller.watching():
        output = student(images())
    distiller.loss(student, images(), output)
    with pytest.raises(RuntimeError, match="has not been seen running since the last call"):
        distiller.loss(student, images(), output)


def test_another_student_batch_or_no_module() -> None:
    distiller, student = bound()
    with pytest.raises(ValueError, match=r"Distiller.loss: this is not the student that was bound; call bind for it"):
        distiller.loss(ConvNet(4, 1), images(), None)
    with pytest.raises(TypeError, match=r"Distiller.update: student must be a torch.nn.Module, got int"):
        distiller.update(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Distiller.bind: student must be a torch.nn.Module, got str"):
        distiller.bind("student", images())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"distillation: a batch is a int; allowed are a tensor"):
        distiller.bind(student, 3)
    with distiller.watching():
        output = student(images(count=3))
    with pytest.raises(ValueError, match=r"\[3, 5\], the teacher's \[4, 5\]; both must be the same"):
        distiller.loss(student, images(count=4), output)


def test_nan_from_the_teacher() -> None:
    distiller, student = bound()
    with distiller.watching():
        output = student(images())
    bad = images()
    bad[2, 0, 0, 0] = math.nan
    with pytest.raises(
        ValueError, match=r"the teacher's module 'conv2' hold NaN or infinity, first in sample 2 of the"
    ):
        distiller.loss(student, bad, output)
    teacher = ConvNet(8, 0)
    with torch.no_grad():
        teacher.fc.bias[1] = math.inf
    with pytest.raises(ValueError, match=r"the teacher's logits hold NaN or infinity, first in sample 0"):
        Distiller(teacher).bind(student, images())
    with torch.no_grad():
        teacher.fc.bias[1] = -math.inf  # a class that is ruled out
    Distiller(teacher).bind(student, images())


def test_wrong_self_distillation(tmp_path: Any) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"source": "emma"}, ValueError, r"SelfDistillation: source 'emma' is unknown; .*did you mean 'ema'\?"),
        ({"decay": 1.5}, ValueError, "decay must be a number >= 0 and <= 1, got 1.5"),
        ({"every": 0, "source": "snapshot"}, ValueError, "every must be a whole number >= 1, got 0"),
        ({"every": 5}, ValueError, "every belongs to source 'snapshot', source is 'ema'"),
    ]
    for fields, error, message in wrong:
        with pytest.raises(error, match=message):
            SelfDistillation(**fields)
    with pytest.raises(ValueError, match="a cache needs a teacher that stays the same"):
        Distiller(SelfDistillation(), cache=TeacherCache(tmp_path))
    for loss in (LogitsLoss(), FeatureLoss(), FeatureLoss("conv2"), FeatureLoss("conv2", "conv2")):
        with pytest.raises(ValueError, match=r"with SelfDistillation\('deeper'\) every loss names two taps"):
            Distiller(SelfDistillation("deeper"), loss)

    class Uncopyable(ConvNet):
        def __deepcopy__(self, memo: Any) -> Any:
            raise ValueError("no")

    with pytest.raises(TypeError, match=r"the student \(Uncopyable\) cannot be copied \(ValueError: no\)"):
        Distiller(SelfDistillation()).bind(Uncopyable(4, 1), images())
