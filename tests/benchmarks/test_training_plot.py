"""The picture of a training table."""

from __future__ import annotations

from pathlib import Path

from benchmarks.training.plot import draw, points


def _report() -> dict[str, object]:
    latency = {"64": {"fp32 eager": 4.0, "strongest dense": 3.0, "this": 0.5}}
    rows = [
        {"row": "90% 4x4, full recipe", "seed": 0, "epochs": 4, "accuracy": 93.0, "latency": latency},
        {"row": "90% 4x4, full recipe", "seed": 1, "epochs": 4, "accuracy": 94.0},
        {"row": "90% 4x4, not trained", "seed": 0, "epochs": 0, "accuracy": 10.0, "latency": latency},
        {"row": "student", "seed": 0, "epochs": 4, "accuracy": 92.0},
    ]
    return {"dense": {"accuracy": 94.4}, "rows": rows}


def test_a_point_is_a_mean_over_seeds() -> None:
    assert points(_report()) == [("90% 4x4, full recipe", 8.0, 93.5)]


def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (draw(_report(), tmp_path / name, "Digits").read_bytes() for name in ("a.svg", "b.svg"))
    assert first == second
    text = first.decode()
    assert "90% 4x4, full recipe" in text
    assert "batch 64" in text
    assert "not trained" not in text
