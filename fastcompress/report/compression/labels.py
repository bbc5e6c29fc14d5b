"""Where the labels of points go so that they do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["placed_labels"]

_WIDTH, _HEIGHT = 6.6, 13.0

Box = tuple[float, float, float, float]


def placed_labels(
    places: Sequence[tuple[float, float]], labels: Sequence[str], frame: Box, obstacles: Sequence[Box] = ()
) -> list[tuple[float, float, str]]:
    """For each point the place and the anchor of its label: beside it, or above or below, whichever is free.

    Args:
        places: the points, in pixels.
        labels: their words.
        frame: left, top, right and bottom that labels must keep to where they can.
        obstacles: boxes of other things that labels should not cover.
    """
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places] + list(obstacles)
    found = []
    for (x, y), label in zip(places, labels, strict=True):
        width = _WIDTH * len(label)
        tries: list[tuple[float, float, float, str]] = []
        for shift in (0.0, -16.0, 16.0, -32.0, 32.0, -48.0, 48.0, -64.0, 64.0):
            tries += [(x + 9, y + 4 + shift, x + 9, "start"), (x - 9, y + 4 + shift, x - 9 - width, "end")]
            tries.append((x, y + 4 + shift, x - width / 2, "middle"))
        best = min(tries, key=lambda t: _cost(_box(t, width), taken, frame) + 2 * abs(t[1] - y - 4))
        taken.append(_box(best, width))
        found.append((best[0], best[1], best[3]))
    return found


def _box(place: tuple[float, float, float, str], width: float) -> Box:
    return (place[2], place[1] - _HEIGHT + 2, place[2] + width, place[1] + 3)


def _cost(box: Box, taken: Sequence[Box], frame: Box) -> float:
    """Pixels that are covered twice, and those outside."""
    overlap = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    outside = max(0.0, frame[0] - box[0]) + max(0.0, box[2] - frame[2])
    outside += max(0.0, frame[1] - box[1]) + max(0.0, box[3] - frame[3])
    return overlap + 20.0 * outside
