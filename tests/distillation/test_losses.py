"""Every loss against an independent computation in numpy float64, and its gradient against differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcompress.distillation import (
    AttentionTransferLoss,
    DistillationLoss,
    FeatureLoss,
    LogitsLoss,
    RelationalLoss,
)

Array = NDArray[np.float64]

#: Both sides are float64 sums of at most 500 terms of size O(1): 500 · 2^-53 < 1e-13.
EXACT = 1e-12


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def kl(s: Array, t: Array, temperature: float) -> float:
    """T² KL of one position."""
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (t, s))
    return temperature**2 * float((p * np.log(p / q)).sum())


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return 0.5 * d * d if d < 1 else d - 0.5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_of_samples(temperature: float) -> None:
    s, t = pair(6, 5)
    expected = np.mean([kl(s[i].numpy(), t[i].numpy(), temperature) for i in range(6)])
    assert LogitsLoss(temperature)(s, t).item() == pytest.approx(expected, rel=EXACT)
    assert LogitsLoss(temperature, weight=0.25)(s, t).item() == pytest.approx(0.25 * expected, rel=EXACT)
    assert abs(LogitsLoss(temperature)(t, t).item()) < 1e-14


def test_logits_of_tokens_with_a_mask() -> None:
    s, t = pair(2, 3, 4)
    kept = torch.tensor([[True, True, False], [False, True, False]])
    wanted = [kl(s[b, i].numpy(), t[b, i].numpy(), 2.0) for b, i in kept.nonzero().tolist()]
    assert LogitsLoss(2.0)(s, t, kept).item() == pytest.approx(np.mean(wanted), rel=EXACT)
    every = [kl(s[b, i].numpy(), t[b, i].numpy(), 2.0) for b in range(2) for i in range(3)]
    assert LogitsLoss(2.0)(s, t).item() == pytest.approx(np.mean(every), rel=EXACT)
    assert LogitsLoss(2.0)(s, t, torch.zeros(2, 3, dtype=torch.bool)).item() == 0.0


def test_logits_of_pixels_have_their_classes_in_dimension_1() -> None:
    s, t = pair(2, 5, 3, 4)
    flat = [x.permute(0, 2, 3, 1).reshape(-1, 5) for x in (s, t)]
    assert LogitsLoss()(s, t).item() == pytest.approx(LogitsLoss()(*flat).item(), rel=EXACT)


def test_gradient_of_logits_is_independent_of_the_temperature_to_first_order() -> None:
    # Hinton et al. 2015, eq. 4: for a large T the gradient is (s - t) / N for logits of zero mean.
    s, t = (x - x.mean(1, keepdim=True) for x in pair(1, 5))
    s = s.clone().requires_grad_()
    LogitsLoss(1e4)(s, t).backward()
    assert s.grad is not None
    assert torch.allclose(s.grad, (s.detach() - t) / 5, atol=1e-3)  # the next term is O(1/T) = 1e-4 times squares


def test_classes_of_probability_zero_add_nothing() -> None:
    s, t = pair(3, 6)
    expected = LogitsLoss()(s[:, :4], t[:, :4]).item()
    s[:, 4:], t[:, 4:] = -math.inf, -math.inf
    s.requires_grad_()
    loss = LogitsLoss()(s, t)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=EXACT)
    assert s.grad is not None
    assert bool(torch.isfinite(s.grad).all())


def test_half_precision_is_computed_in_float32() -> None:
    s, t = (x.bfloat16() for x in pair(4, 7))
    loss = LogitsLoss()(s, t)
    assert loss.dtype == torch.float32
    assert loss.item() == LogitsLoss()(s.float(), t.float()).item()
    with torch.autocast("cpu", torch.bfloat16):
        inside = RelationalLoss()(s, t)
    # Products in bfloat16 would be off by 2^-9; float32 sums of at most 12 terms of size O(1) by less than 1e-5.
    assert inside.item() == pytest.approx(RelationalLoss()(s.double(), t.double()).item(), abs=1e-5)


def test_feature_is_the_mean_square() -> None:
    s, t = pair(4, 7)
    expected = ((s.numpy() - t.numpy()) ** 2).mean()
    assert FeatureLoss()(s, t).item() == pytest.approx(expected, rel=EXACT)
    assert FeatureLoss(weight=3.0)(s, t).item() == pytest.approx(3.0 * expected, rel=EXACT)


def test_feature_of_tokens_leaves_masked_ones_out() -> None:
    s, t = pair(2, 3, 4)
    kept = torch.tensor([[True, False, True], [True, False, False]])
    expected = ((s - t)[kept].numpy() ** 2).mean()
    s[~kept] = math.nan  # padding may hold anything
    assert FeatureLoss()(s, t, kept).item() == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("student", "teacher"), [((6, 4), (3, 2)), ((3, 2), (6, 4)), ((6, 2), (3, 4))])
def test_feature_maps_are_pooled_to_the_smaller_size(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    s, t = pair(2, 3, *student)[0], pair(2, 3, *teacher)[1]

    def pooled(x: Tensor) -> Array:
        a = x.numpy()
        return a.reshape(2, 3, 3, a.shape[2] // 3, 2, a.shape[3] // 2).mean(axis=(3, 5))

    expected = ((pooled(s) - pooled(t)) ** 2).mean()
    assert FeatureLoss()(s, t).item() == pytest.approx(expected, rel=EXACT)


def attention_value(s: Array, t: Array) -> float:
    total = 0.0
    for a, b in zip(s, t, strict=True):
        total += float(((a.ravel() / np.linalg.norm(a) - b.ravel() / np.linalg.norm(b)) ** 2).sum())
    return total / len(s)


def test_attention_transfer_of_maps_of_different_width_and_size() -> None:
    s, t = pair(3, 4, 6, 4)[0], pair(3, 7, 3, 2)[1]
    s_map = (s.numpy() ** 2).sum(1).reshape(3, 3, 2, 2, 2).mean(axis=(2, 4))
    expected = attention_value(s_map, (t.numpy() ** 2).sum(1))
    assert AttentionTransferLoss()(s, t).item() == pytest.approx(expected, rel=EXACT)
    assert AttentionTransferLoss()(3.0 * t, t).item() == pytest.approx(0.0, abs=EXACT)  # blind to scale


def test_attention_transfer_of_tokens() -> None:
    s, t = pair(2, 5, 4)[0], pair(2, 5, 8)[1]
    kept = torch.tensor([[True] * 5, [True, True, True, False, False]])
    maps = [(x.numpy() ** 2).sum(-1) * kept.numpy() for x in (s, t)]
    assert AttentionTransferLoss()(s, t, kept).item() == pytest.approx(attention_value(*maps), rel=EXACT)


def test_attention_probabilities() -> None:
    loss = AttentionTransferLoss("a", maps="attention")
    s, t = pair(2, 4, 3, 3)
    assert loss(s, t).item() == pytest.approx(((s - t).numpy() ** 2).mean(), rel=EXACT)
    kept = torch.tensor([[True, True, False], [True, True, True]])
    squares = ((s - t).numpy() ** 2).transpose(0, 2, 3, 1)
    inside = [squares[b, i, j] for b in range(2) for i in range(3) for j in range(3) if kept[b, i] and kept[b, j]]
    assert loss(s, t, kept).item() == pytest.approx(np.mean(inside), rel=EXACT)
    fewer = t[:, :2]
    expected = ((s.numpy().mean(1) - fewer.numpy().mean(1)) ** 2).mean()
    assert loss(s, fewer).item() == pytest.approx(expected, rel=EXACT)


def relational_value(s: Array, t: Array, distance: float, angle: float) -> float:
    n = len(s)
    scaled = []
    for x in (s, t):
        d = {(i, j): float(np.linalg.norm(x[i] - x[j])) for i, j in itertools.permutations(range(n), 2)}
        mean = np.mean(list(d.values()))
        scaled.append({key: value / mean for key, value in d.items()})
    distances = [huber(scaled[0][key], scaled[1][key]) for key in scaled[0]]

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    angles = [huber(cosine(s, *ijk), cosine(t, *ijk)) for ijk in itertools.permutations(range(n), 3)]
    return distance * float(np.mean(distances)) + angle * float(np.mean(angles))


def test_relational_over_all_pairs_and_triplets() -> None:
    s, t = pair(6, 4)[0], pair(6, 9)[1]
    for distance, angle in [(1.0, 2.0), (1.0, 0.0), (0.0, 1.0)]:
        expected = relational_value(s.numpy(), t.numpy(), distance, angle)
        value = RelationalLoss(distance=distance, angle=angle)(s, t).item()
        assert value == pytest.approx(expected, rel=EXACT)
    assert RelationalLoss()(5.0 * t, t).item() == pytest.approx(0.0, abs=EXACT)  # blind to scale


def test_relational_averages_positions() -> None:
    s, t = pair(4, 3, 5, 2)
    expected = relational_value(s.numpy().mean((2, 3)), t.numpy().mean((2, 3)), 1.0, 2.0)
    assert RelationalLoss()(s, t).item() == pytest.approx(expected, rel=EXACT)
    s, t = pair(3, 4, 5)
    kept = torch.tensor([[True] * 4, [True, False, False, False], [True, True, False, False]])
    means = [np.stack([x[i][kept[i]].numpy().mean(0) for i in range(3)]) for x in (s, t)]
    assert RelationalLoss()(s, t, kept).item() == pytest.approx(relational_value(*means, 1.0, 2.0), rel=EXACT)


def test_relational_without_enough_or_with_equal_samples() -> None:
    for count in (1, 2):
        s, t = pair(count, 4)
        s.requires_grad_()
        RelationalLoss()(s, t).backward()
        assert s.grad is not None
        assert bool(torch.isfinite(s.grad).all())
    s, t = pair(5, 4)
    s[1] = s[0]
    s.requires_grad_()
    RelationalLoss()(s, t).backward()
    assert s.grad is not None
    assert bool(torch.isfinite(s.grad).all())


KEPT = torch.tensor([[True, True, False], [True, False, False]])
GRADIENTS: list[tuple[DistillationLoss, tuple[int, ...], tuple[int, ...], Tensor | None]] = [
    (LogitsLoss(3.0, weight=0.7), (4, 5), (4, 5), None),
    (LogitsLoss(3.0), (2, 3, 4), (2, 3, 4), KEPT),
    (LogitsLoss(), (2, 3, 2, 2), (2, 3, 2, 2), None),
    (FeatureLoss(weight=0.7), (3, 4), (3, 4), None),
    (FeatureLoss(), (2, 3, 4), (2, 3, 4), KEPT),
    (FeatureLoss(), (2, 2, 5, 3), (2, 2, 3, 4), None),
    (AttentionTransferLoss(weight=0.7), (2, 3, 4, 4), (2, 5, 3, 2), None),
    (AttentionTransferLoss(), (2, 3, 4), (2, 3, 6), KEPT),
    (AttentionTransferLoss("a", maps="attention"), (2, 2, 3, 3), (2, 3, 3, 3), KEPT),
    (RelationalLoss(weight=0.7), (5, 3), (5, 4), None),
    (RelationalLoss(distance=0.0, angle=1.0), (4, 3, 2, 2), (4, 3), None),
    (RelationalLoss(angle=0.0), (3, 3, 4), (3, 3, 4), torch.cat([KEPT, KEPT[:1]])),
]


@pytest.mark.parametrize(("loss", "student", "teacher", "kept"), GRADIENTS)
def test_gradients(
    loss: DistillationLoss, student: tuple[int, ...], teacher: tuple[int, ...], kept: Tensor | None
) -> None:
    s, t = pair(*student)[0].requires_grad_(), pair(*teacher)[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t, kept), (s,))
    loss(s, t, kept).backward()
    assert t.grad is None  # the teacher is a constant
    assert s.grad is not None
    assert float(s.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("student", "teacher"), [((3, 4), (3, 6)), ((2, 3, 4), (2, 3, 6)), ((2, 4, 4, 4), (2, 6, 2, 2))]
)
def test_gradients_through_the_projection(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    s, t = pair(*student)[0].requires_grad_(), pair(*teacher)[1]
    loss = FeatureLoss()
    projection = loss.make_projection(s, t, torch.Generator().manual_seed(0))
    assert projection is not None
    names, values = zip(*projection.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return loss(torch.func.functional_call(projection, named, (x,)), t)

    assert torch.autograd.gradcheck(run, (s, *values))


def test_empty_batches_give_zero() -> None:
    assert LogitsLoss()(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0.0
    assert FeatureLoss()(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0.0
    assert RelationalLoss()(torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0.0


WRONG_FIELDS: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (LogitsLoss, {"temperature": 0}, ValueError, r"LogitsLoss: temperature must be a number > 0, got 0"),
    (LogitsLoss, {"temperature": -1.0}, ValueError, r"temperature must be a number > 0, got -1.0"),
    (LogitsLoss, {"temperature": math.inf}, ValueError, r"temperature must be a number > 0, got inf"),
    (LogitsLoss, {"temperature": "4"}, TypeError, r"temperature must be a number > 0, got '4'"),
    (LogitsLoss, {"weight": -0.1}, ValueError, r"LogitsLoss: weight must be a number >= 0, got -0.1"),
    (LogitsLoss, {"weight": True}, TypeError, r"weight must be a number >= 0, got True"),
    (LogitsLoss, {"mask": 3}, TypeError, r"mask must be the name of an entry of the batch or None, got 3"),
    (LogitsLoss, {"ignore_index": -100}, ValueError, r"ignore_index needs mask"),
    (LogitsLoss, {"ignore_index": 1.5, "mask": "labels"}, TypeError, r"ignore_index must be an int or None, got 1.5"),
    (FeatureLoss, {"weight": math.nan}, ValueError, r"FeatureLoss: weight must be a number >= 0, got nan"),
    (FeatureLoss, {"student_tap": 3}, TypeError, r"student_tap must be a module name or None, got 3"),
    (FeatureLoss, {"teacher_tap": "a"}, ValueError, r"teacher_tap is 'a', student_tap is None; name both"),
    (FeatureLoss, {"projection": "alway"}, ValueError, r"projection 'alway' is unknown; .*did you mean 'always'\?"),
    (AttentionTransferLoss, {"weight": -1}, ValueError, r"AttentionTransferLoss: weight must be a number >= 0"),
    (AttentionTransferLoss, {"maps": "attentions"}, ValueError, r"maps 'attentions' is unknown.* 'attention'\?"),
    (AttentionTransferLoss, {"maps": "attention"}, ValueError, r"maps='attention' needs student_tap"),
    (RelationalLoss, {"distance": -1}, ValueError, r"RelationalLoss: distance must be a number >= 0, got -1"),
    (RelationalLoss, {"distance": 0, "angle": 0}, ValueError, r"distance and angle are both 0"),
]


@pytest.mark.parametrize(("kind", "fields", "error", "message"), WRONG_FIELDS)
def test_wrong_fields(kind: Callable[..., Any], fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        kind(**fields)


WRONG_SHAPES: list[tuple[DistillationLoss, tuple[int, ...], tuple[int, ...], str]] = [
    (LogitsLoss(), (2, 5), (2, 6), r"student's logits have shape \[2, 5\], the teacher's \[2, 6\]; .*same classes"),
    (LogitsLoss(), (5,), (5,), r"LogitsLoss: .*shape \[5\]"),
    (FeatureLoss(), (2, 5), (3, 5), r"FeatureLoss: .*\[2, 5\], the teacher's \[3, 5\]; .* batch and must be the same"),
    (FeatureLoss(), (2, 5), (2, 5, 4, 4), r"FeatureLoss: .* both must be of one kind"),
    (FeatureLoss(), (2, 5), (2, 6), r"has 5 features or channels .* the teacher 6 .* projection='auto'"),
    (FeatureLoss(), (2, 7, 5), (2, 6, 5), r"has 7 tokens, the teacher 6"),
    (AttentionTransferLoss(), (2, 3, 4, 4), (3, 3, 4, 4), r"AttentionTransferLoss: .* run both on one batch"),
    (AttentionTransferLoss(), (2, 3), (2, 3), r"for maps='activation' both must be \[batch, channels"),
    (AttentionTransferLoss(), (2, 7, 5), (2, 6, 5), r"both must have the same tokens"),
    (AttentionTransferLoss("a", maps="attention"), (2, 3, 4), (2, 3, 4), r"for maps='attention' both must be"),
    (AttentionTransferLoss("a", maps="attention"), (2, 3, 4, 4), (2, 3, 5, 5), r"both must have the same tokens"),
    (RelationalLoss(), (2, 3), (4, 3), r"RelationalLoss: .*\[2, 3\], the teacher's \[4, 3\]; .* run both on one batch"),
    (RelationalLoss(), (2,), (2,), r"the student's embedding has shape \[2\]; it must be \[batch, features\]"),
]


@pytest.mark.parametrize(("loss", "student", "teacher", "message"), WRONG_SHAPES)
def test_wrong_shapes(loss: DistillationLoss, student: tuple[int, ...], teacher: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(student), torch.zeros(teacher))
