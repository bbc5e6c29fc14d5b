"""Students inside torch.compile and DistributedDataParallel."""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastcompress.distillation import Distiller, SelfDistillation
from tests.distillation.models import ConvNet, images, same, snapshot

LOSSES = ("logits", "feature")


@pytest.fixture
def compiled() -> Iterator[ConvNet]:
    torch.compiler.reset()
    student = ConvNet(4, 1)
    student.dropout.p = 0.0
    yield student
    torch.compiler.reset()


def gradients(distiller: Distiller, student: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Loss parts and gradients of one step."""
    student.zero_grad()
    for parameter in distiller.parameters():
        parameter.grad = None
    with distiller.watching():
        output = student(x)
    parts = distiller.loss(student, x, output)
    (parts["total"] + output.square().sum()).backward()
    named = {n.removeprefix("_orig_mod."): p.grad for n, p in student.named_parameters() if p.grad is not None}
    return {**{name: value.detach() for name, value in parts.items()}, **named}


def test_a_compiled_student_is_watched_step_after_step(compiled: ConvNet) -> None:
    teacher, plain = ConvNet(8, 0), copy.deepcopy(compiled)
    fast = torch.compile(compiled, backend="aot_eager")
    one, two = Distiller(teacher, LOSSES).bind(fast, images()), Distiller(teacher, LOSSES).bind(plain, images())
    for seed in range(3):
        found, expected = gradients(one, fast, images(seed)), gradients(two, plain, images(seed))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            # aot_eager runs the same kernels in another order of summation: sums of at most 256 terms of size O(1).
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-4), name
        fast.eval()(images())  # evaluation between the steps, unwatched
        plain.eval()
        fast.train(), plain.train()
    one.unbind()
    assert not any(m._forward_hooks for m in compiled.modules())


def test_a_student_compiled_and_run_before_bind_says_so(compiled: ConvNet) -> None:
    fast = torch.compile(compiled, backend="eager")
    fast(images())
    distiller = Distiller(ConvNet(8, 0), LOSSES).bind(fast, images())
    with distiller.watching():
        output = fast(images())
    with pytest.raises(RuntimeError, match=r"compiled before bind \(call torch.compiler.reset\(\)\)"):
        distiller.loss(fast, images(), output)
    torch.compiler.reset()
    with distiller.watching():
        output = fast(images())
    assert bool(torch.isfinite(distiller.loss(fast, images(), output)["total"]))


def test_a_failed_bind_leaves_no_hooks_in_a_compiled_student(compiled: ConvNet) -> None:
    distiller = Distiller(ConvNet(8, 0, classes=3))
    fast = torch.compile(compiled, backend="eager")
    before = snapshot(compiled)
    with pytest.raises(ValueError, match="same classes"):
        distiller.bind(fast, images())
    assert same(compiled, before)


def test_a_compiled_teacher(compiled: ConvNet) -> None:
    student = ConvNet(6, 2)
    distiller = Distiller(torch.compile(compiled, backend="eager"), LOSSES).bind(student, images())
    plain = Distiller(compiled, LOSSES).bind(student, images())
    for each in (distiller, plain):
        each_parts = gradients(each, student.eval(), images())
        assert each_parts["total"].item() == gradients(plain, student, images())["total"].item()


def test_self_distillation_copies_the_model_inside(compiled: ConvNet) -> None:
    fast = torch.compile(compiled, backend="eager")
    distiller = Distiller(SelfDistillation(decay=0.0)).bind(fast, images())
    with torch.no_grad():
        compiled.fc.bias.fill_(3.0)
    distiller.update(fast)
    assert type(distiller.teacher_model) is ConvNet
    assert torch.equal(distiller.teacher_model.fc.bias, compiled.fc.bias)


def _rank(rank: int, place: str) -> dict[str, Tensor]:
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2, timeout=timeout)
    try:
        student = ConvNet(4, 1).eval()  # BatchNorm's statistics of half a batch are not those of the whole
        wrapped = nn.parallel.DistributedDataParallel(student)
        distiller = Distiller(ConvNet(8, 0), LOSSES).bind(wrapped, images(count=8))
        found = gradients(distiller, wrapped, images(count=8)[rank::2])
        distiller.average_gradients()
        found |= {f"projection.{i}": p.grad for i, p in enumerate(distiller.parameters()) if p.grad is not None}
        return {name.removeprefix("module."): value for name, value in found.items()}
    finally:
        dist.destroy_process_group()


def _report(rank: int, place: str, results: Any) -> None:
    torch.set_num_threads(1)
    results.put((rank, {name: value.numpy() for name, value in _rank(rank, place).items()}))
    results.close()
    results.join_thread()
    # Not through the interpreter's end: there gloo's threads sometimes abort a process that has done its work.
    os._exit(0)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_report, args=(rank, place, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        arrays = dict(results.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(timeout=60)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    found = {rank: {name: torch.from_numpy(value) for name, value in arrays[rank].items()} for rank in range(2)}

    student = ConvNet(4, 1).eval()
    distiller = Distiller(ConvNet(8, 0), LOSSES).bind(student, images(count=8))
    halves = [gradients(distiller, student, images(count=8)[rank::2])["total"].item() for rank in range(2)]
    with distiller.watching():
        output = student(images(count=8))
    student.zero_grad()
    for parameter in distiller.parameters():
        parameter.grad = None
    # The loop's own loss in `gradients` is a sum, of which two ranks average their halves.
    (distiller.loss(student, images(count=8), output)["total"] + 0.5 * output.square().sum()).backward()
    named = [*student.named_parameters()] + [(f"projection.{i}", p) for i, p in enumerate(distiller.parameters())]
    assert len(named) == 10
    for rank in range(2):
        assert found[rank]["total"].item() == pytest.approx(halves[rank], rel=1e-5)
        for name, parameter in named:
            assert parameter.grad is not None
            # Both are float32 sums of the same 512 products of size O(1), in another order: 512 · 2^-24 each.
            assert torch.allclose(found[rank][name], parameter.grad, rtol=1e-4, atol=1e-4), name
