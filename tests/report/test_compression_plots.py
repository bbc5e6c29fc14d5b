"""What the pages of a report are drawn with: batches, fronts, axes, labels."""

from __future__ import annotations

import pytest
import torch

from fastcompress.report.compression.axes import axis_over
from fastcompress.report.compression.batches import batch_size, repeated
from fastcompress.report.compression.labels import placed_labels
from fastcompress.report.compression.series import Point, front


def test_batches_are_made_by_repeating_and_cutting() -> None:
    x, y = torch.arange(3.0)[:, None], torch.tensor([7, 8, 9])
    again = repeated((x, y), 5)
    assert again[0].flatten().tolist() == [0, 1, 2, 0, 1]
    assert again[1].tolist() == [7, 8, 9, 7, 8]
    tokens = {"ids": torch.ones(2, 6), "mask": torch.ones(2, 6), "table": torch.ones(9), "flag": True}
    cut = repeated(tokens, 1)
    assert {name: getattr(value, "shape", None) for name, value in cut.items()} == {
        "ids": (1, 6), "mask": (1, 6), "table": (9,), "flag": None,
    }  # fmt: skip
    assert batch_size([x]) == 3
    with pytest.raises(ValueError, match="no tensor with samples"):
        batch_size({"flag": True, "x": torch.zeros(0, 3)})


def test_front() -> None:
    places = {"slow": (4.0, 0.9), "beaten": (3.0, 0.7), "fast": (1.0, 0.5), "tie": (2.0, 0.8), "twin": (2.0, 0.8)}
    points = [Point(name, x, y, 0) for name, (x, y) in places.items()]
    expected = [p.label for p in points if not any(
        q.x <= p.x and q.y >= p.y and (q.x, q.y) != (p.x, p.y) for q in points)]  # fmt: skip
    assert expected == ["slow", "fast", "tie", "twin"]
    assert [p.label for p in front(points)] == ["fast", "tie", "slow"]  # of equals one


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[3.0], [0.013, 0.0131], [1e-4, 5e3], [2.0, 2.0, 7.0]])
def test_axes_cover_their_values(values: list[float], log: bool) -> None:
    axis = axis_over(values, 10.0, 110.0, log=log)
    assert all(10.0 <= axis.place(value) <= 110.0 for value in values)
    assert len(axis.ticks) >= 2
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


def test_labels_do_not_cover_each_other() -> None:
    places = [(200.0, 100.0), (205.0, 103.0), (198.0, 98.0), (390.0, 12.0), (12.0, 190.0)]
    words = ["a model", "another model", "a third one", "at the corner", "at the other"]
    boxes = []
    for (x, y, anchor), word in zip(placed_labels(places, words, (0.0, 0.0, 400.0, 200.0)), words, strict=True):
        width = 6.6 * len(word)
        left = {"start": x, "end": x - width, "middle": x - width / 2}[anchor]
        assert 0 <= left <= left + width <= 400
        boxes.append((left, y - 11, left + width, y + 3))
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
