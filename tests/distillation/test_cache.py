"""The teacher cache: what hits and misses, the same bits as without it, and damaged files."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcompress.distillation import CacheStats, Distiller, FeatureLoss, LogitsLoss, TeacherCache
from fastcompress.distillation.fingerprint import Fingerprint
from fastcompress.distillation.samples import Samples
from tests.distillation.caching import LOSSES, Counting, distiller, equal, files, run
from tests.distillation.models import ConvNet, Tagger, images, tokens


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_hits_have_the_bits_of_computing(tmp_path: Path, memory_format: torch.memory_format) -> None:
    teacher = Counting().to(memory_format=memory_format)  # type: ignore[call-overload]
    cache = TeacherCache(tmp_path)
    cached, plain = distiller(cache, teacher), distiller(None, teacher)
    x = images().to(memory_format=memory_format)
    expected = run(plain, x)
    teacher.counter[0] = 0
    assert equal(run(cached, x), expected)
    assert teacher.counter[0] == 4
    assert equal(run(cached, x), expected)
    assert teacher.counter[0] == 4
    assert cache.stats == CacheStats(4, 4, 4, 0, sum(f.stat().st_size for f in files(tmp_path)))
    assert cache.stats.hit_rate == 0.5
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_hit_has_the_bits_that_were_stored_wherever_the_sample_is_now(tmp_path: Path) -> None:
    teacher = Counting().eval()
    bound = distiller(TeacherCache(tmp_path), teacher)[0]
    x = images(count=6)
    runner = bound._bound("test").teacher
    assert runner is not None
    first = runner.outputs(x)
    order = torch.tensor([5, 2, 2, 0])
    shuffled = TeacherCache(tmp_path)  # another object, as in another run
    again = distiller(shuffled, copy.deepcopy(teacher))[0]._bound("test").teacher
    assert again is not None
    second = again.outputs(x[order])
    assert equal(second, {name: value[order] for name, value in first.items()})
    uncached = distiller(None, copy.deepcopy(teacher).to(memory_format=torch.channels_last))[0]  # type: ignore[call-overload]
    runner = uncached._bound("test").teacher
    assert runner is not None
    plain = runner.outputs(x[order].to(memory_format=torch.channels_last))
    assert all(plain[name].stride() == value.stride() for name, value in second.items())  # sums run in one order
    assert (shuffled.stats.hits, shuffled.stats.misses, teacher.counter[0]) == (4, 0, 6)


def test_labels_do_not_count_and_changed_samples_miss(tmp_path: Path) -> None:
    teacher, cache = Counting(), TeacherCache(tmp_path)
    bound = distiller(cache, teacher)
    x = images()

    def ask(batch: Any) -> tuple[int, int]:
        before = cache.stats
        with bound[0].watching():
            output = bound[1](batch[0])
        bound[0].loss(bound[1], batch, output)
        return cache.stats.hits - before.hits, cache.stats.misses - before.misses

    assert ask((x, torch.zeros(4))) == (0, 4)
    assert ask((x, torch.ones(4))) == (4, 0)
    augmented = x.clone()
    augmented[1] = augmented[1].flip(-1)
    assert ask((augmented, torch.ones(4))) == (3, 1)
    assert ask((-0.0 * x, torch.ones(4))) == (0, 4)
    assert ask((0.0 * x.abs(), torch.ones(4)))[1] == 4  # -0.0 and 0.0 are other bytes


def test_what_the_teacher_depends_on_is_part_of_the_key(tmp_path: Path) -> None:
    teacher, x = Counting(), images()
    cache = TeacherCache(tmp_path)
    bound = distiller(cache, teacher)

    def misses(run_it: Any) -> int:
        before = cache.stats.misses
        run_it()
        return cache.stats.misses - before

    assert misses(lambda: run(bound, x)) == 4
    assert misses(lambda: run(bound, x)) == 0
    with torch.no_grad():
        teacher.fc.bias[0] += 1.0
    assert misses(lambda: run(bound, x)) == 4
    teacher.bn1.running_mean[0] += 1.0  # type: ignore[index]
    assert misses(lambda: run(bound, x)) == 4
    teacher.bn1.eps = 0.1
    assert misses(lambda: run(bound, x)) == 4
    assert misses(lambda: run(distiller(cache, teacher, [FeatureLoss("conv1"), "logits"]), x)) == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert misses(lambda: run(bound, x)) == 4
        assert misses(lambda: run(bound, x)) == 0
    assert misses(lambda: run(distiller(cache, teacher), x)) == 0
    assert misses(lambda: run(distiller(cache, copy.deepcopy(teacher)), x)) == 0


@pytest.mark.parametrize(("recompute", "computed"), [("batch", 4), ("missing", 1)])
def test_batches_that_hit_in_part(tmp_path: Path, recompute: str, computed: int) -> None:
    teacher = Counting()
    bound = distiller(TeacherCache(tmp_path, recompute=recompute), teacher)
    x = images()
    run(bound, x)
    other = torch.cat([x[:2], images(7, 1), x[3:]])
    teacher.counter[0] = 0
    parts = run(bound, other)
    assert teacher.counter[0] == computed
    # Samples that hit keep their bits; the others have those of the batch that the teacher was given.
    teacher.eval()
    known = teacher(x)
    fresh = teacher(other)[2:3] if recompute == "batch" else teacher(images(7, 1))
    logits = torch.cat([known[:2], fresh, known[3:]])
    assert parts["logits"].item() == LogitsLoss()(bound[1](other), logits).item()


def test_the_size_is_bounded(tmp_path: Path) -> None:
    teacher = Counting()
    run(distiller(TeacherCache(tmp_path), teacher), images(count=1))
    size = files(tmp_path)[0].stat().st_size
    shutil.rmtree(tmp_path)
    cache = TeacherCache(tmp_path, max_bytes=5 * size // 2)
    bound = distiller(cache, teacher)
    with pytest.warns(UserWarning, match=r"holds max_bytes=\d+; what is missing is computed each time"):
        run(bound, images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        run(bound, images(5))
    assert len(files(tmp_path)) == 2
    assert cache.stats.total_bytes == 2 * size
    run(bound, images())
    assert cache.stats.hits == 2
    resumed = TeacherCache(tmp_path, max_bytes=5 * size // 2)  # counts what is there
    assert resumed.stats.total_bytes == 2 * size
    with pytest.warns(UserWarning, match="holds max_bytes"):
        run(distiller(resumed, teacher), images(6))
    assert len(files(tmp_path)) == 2


def test_clear_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    cache = TeacherCache(tmp_path)
    run(distiller(cache, Counting()), images())
    (tmp_path / ".fastcompress-0123456789abcdef.tmp").write_bytes(b"left by a kill")
    cache.clear()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["model.safetensors", "notes.txt"]
    assert cache.stats.total_bytes == 0


def test_nothing_is_stored_of_a_batch_with_nan(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path)
    bound = distiller(cache, Counting())
    x = images()
    x[1] = float("nan")
    with pytest.raises(ValueError, match="first in sample 1 of the batch"):
        run(bound, x)
    assert cache.stats.stored == 0


def test_dict_batches_with_shared_and_plain_entries(tmp_path: Path) -> None:
    teacher, student = Tagger(8, 0), Tagger(6, 1).eval()
    cache = TeacherCache(tmp_path)
    bound = Distiller(teacher, LOSSES, cache=cache).bind(student, tokens())

    def ask(batch: dict[str, Any]) -> tuple[int, int]:
        before = cache.stats
        with bound.watching():
            output = student(**batch)
        bound.loss(student, batch, output)
        return cache.stats.hits - before.hits, cache.stats.misses - before.misses

    batch: dict[str, Any] = tokens()
    assert ask(batch) == (0, 3)
    assert ask({name: value.flip(0) for name, value in batch.items()}) == (3, 0)
    assert ask({**batch, "attention_mask": torch.ones(3, 6, dtype=torch.long)}) == (1, 2)
    assert ask({**batch, "scale": 2.0}) == (0, 3)
    assert ask({**batch, "names": ["a", "b", "c"]}) == (0, 3)
    assert ask({name: value[[2, 0]] for name, value in batch.items()} | {"names": ["c", "a"]}) == (2, 0)
    assert ask({**batch, "shared": torch.arange(5)}) == (0, 3)
    with pytest.raises(TypeError, match="the batch holds a set at /names, whose content is unknown"):
        ask({**batch, "names": {"a"}})


def test_hashes_tell_contents_apart() -> None:
    x = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    others = [x, x.view(torch.float32), x.reshape(2, 4, 3), x.long(), x.flip(0)[:1], {"x": x}, {"y": x}, (x, x)]
    others += [{"x": x, "n": n} for n in (1, 1.0, "1", None, True)]
    first = [Samples(batch, whole=True).hashes()[0] for batch in others]
    assert len(set(first)) == len(others)
    assert Samples(x.flip(0)).hashes() == Samples(x).hashes()[::-1]
    strided = x.mT.contiguous().mT
    assert Samples(strided).hashes() == Samples(x).hashes()
    assert Samples((x, "label")).hashes() == Samples([x, "other"]).hashes() == Samples(x).hashes()
    assert Samples(torch.zeros(0, 3)).hashes() == []
    with pytest.raises(TypeError, match=r"a batch of type float holds no tensor that has samples; batches must be"):
        Samples(3.0)


def test_a_new_teacher_in_the_memory_of_an_old_one() -> None:
    fingerprint, seen = Fingerprint(), set()
    memory = np.zeros((4, 4), dtype=np.float32)
    for value in range(3):
        memory[:] = value
        model = nn.Linear(4, 4, bias=False)
        # The same address and version each time: only the tensor itself is another one.
        model.weight = nn.Parameter(torch.from_numpy(memory))
        seen.add(fingerprint.of(model, ["<logits>"], torch.device("cpu"), None))
    assert len(seen) == 3


def test_forward_fn_may_read_all_of_a_tuple(tmp_path: Path) -> None:
    teacher, student, cache = Counting(), ConvNet(4, 1).eval(), TeacherCache(tmp_path, recompute="missing")

    def forward(model: nn.Module, batch: Any) -> Tensor:
        y: Tensor = model(batch[0] * batch[1][:, None, None, None])
        return y

    bound = Distiller(teacher, cache=cache).bind(student, (images(), torch.ones(4)), forward)
    for scale, misses in (([1.0, 1.0, 1.0, 1.0], 4), ([1.0, 2.0, 1.0, 1.0], 5), ([1.0, 2.0, 1.0, 1.0], 5)):
        batch = (images(), torch.tensor(scale))
        with bound.watching():
            output = forward(student, batch)
        bound.loss(student, batch, output)
        assert cache.stats.misses == misses


def test_outputs_without_a_batch_dimension(tmp_path: Path) -> None:
    class Counted(ConvNet):
        """Its ``sizes`` returns one number for each channel, whatever the batch."""

        def __init__(self) -> None:
            super().__init__(4, 0)
            self.sizes = nn.Flatten()

        def forward(self, x: Tensor) -> Tensor:
            self.sizes(self.conv1.weight)
            return super().forward(x)

    # A batch of 4 looks right for 4 channels; one of 3 does not.
    student = Counted().eval()
    bound = Distiller(Counted(), FeatureLoss("sizes"), cache=TeacherCache(tmp_path)).bind(student, images())
    with pytest.raises(
        ValueError, match=r"output 'sizes' has shape \[4, 27\] for a batch of 3; only outputs whose first"
    ):
        run((bound, student), images(count=3))


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    wrong: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((3,), TypeError, "TeacherCache: directory must be a path, got 3"),
        (("",), TypeError, "directory must be a path, got ''"),
        ((tmp_path / "file",), ValueError, "file' is a file; give a directory"),
        ((tmp_path, 0), ValueError, "max_bytes must be a whole number >= 1, got 0"),
        ((tmp_path, "1G"), TypeError, "max_bytes must be a whole number >= 1, got '1G'"),
        ((tmp_path, None, "al"), ValueError, "recompute 'al' is unknown; valid are 'batch', 'missing'"),
    ]
    for arguments, error, message in wrong:
        with pytest.raises(error, match=message):
            TeacherCache(*arguments)
