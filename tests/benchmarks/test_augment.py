"""Augmentation against its definition, and normalization against the closed form."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training.augment import Augmentation, Normalizer, augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 40, channels: int = 3, side: int = 12) -> torch.Tensor:
    """Random bytes without zeros, so that fill is recognised."""
    return torch.randint(1, 256, (count, channels, side, side), generator=generator(9), dtype=torch.uint8)


def test_nothing_is_the_default() -> None:
    x = images()
    assert torch.equal(augment(x, Augmentation(), generator()), x)


def test_flip_mirrors_about_that_share() -> None:
    x = images(400, 1)
    y = augment(x, Augmentation(flip=0.3), generator())
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    kept = (y == x).flatten(1).all(1)
    assert torch.all(mirrored ^ kept)
    assert 85 <= int(mirrored.sum()) <= 155  # 120 ± 4 standard deviations of 9.2
    assert torch.equal(augment(x, Augmentation(flip=1.0), generator()), x.flip(3))


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    side = image.shape[-1]
    return padded[:, 2 + down : 2 + down + side, 2 + right : 2 + right + side]


def test_shift_is_a_crop_of_the_padded_image() -> None:
    x = images(300)
    seen = set()
    for before, after in zip(x, augment(x, Augmentation(shift=2), generator()), strict=True):
        matches = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(after, shifted(before, down, right))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25


def test_erased_pixels_are_one_rectangle_of_the_wanted_area() -> None:
    x = images(200, 3, 24)
    y = augment(x, Augmentation(erase=1.0, erase_area=(0.1, 0.2)), generator())
    for before, after in zip(x, y, strict=True):
        erased = (after == 0).all(0)
        assert torch.equal(after[:, ~erased], before[:, ~erased])
        rows, columns = erased.any(1).nonzero(), erased.any(0).nonzero()
        tall, wide = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert int(erased.sum()) == tall * wide
        # Each side is rounded by at most half a pixel; none reaches the image's side of 24 (√(0.2·576/0.3) = 19.6).
        assert (tall - 0.5) * (wide - 0.5) <= 0.2 * 576
        assert (tall + 0.5) * (wide + 0.5) >= 0.1 * 576


def test_erasing_about_that_share_and_anywhere() -> None:
    x = images(400, 1)
    y = augment(x, Augmentation(erase=0.5), generator())
    assert 160 <= int((y == 0).flatten(1).any(1).sum()) <= 240  # 200 ± 4 standard deviations of 10
    assert bool((y == 0).any(0).all())


def test_fill_and_floats() -> None:
    x = torch.randn(8, 1, 10, 10, generator=generator())
    y = augment(x, Augmentation(shift=3, erase=1.0), generator(), fill=-7.0)
    assert y.dtype == torch.float32
    assert bool(((y == -7.0) | torch.isin(y, x)).all())
    assert bool((y == -7.0).any())


def test_the_generator_decides_and_nothing_else() -> None:
    x, everything = images(), Augmentation(2, 0.5, 0.5)
    first = augment(x, everything, generator(1))
    torch.manual_seed(5)
    assert torch.equal(augment(x, everything, generator(1)), first)
    assert not torch.equal(augment(x, everything, generator(2)), first)
    with_less, with_more = generator(1), generator(1)
    augment(x, Augmentation(), with_less)
    augment(x, everything, with_more)
    assert torch.equal(torch.rand(4, generator=with_less), torch.rand(4, generator=with_more))


def test_input_is_unchanged_and_empty_batches_pass() -> None:
    x = images()
    before = x.clone()
    augment(x, Augmentation(2, 1.0, 1.0), generator())
    assert torch.equal(x, before)
    assert augment(x[:0], Augmentation(2, 1.0, 1.0), generator()).shape == (0, 3, 12, 12)


@pytest.mark.parametrize(
    ("fields", "error", "problem"),
    [
        ({"shift": -1}, ValueError, "shift must be at least 0, got -1"),
        ({"shift": 1.0}, TypeError, "shift must be a whole number"),
        ({"flip": 1.5}, ValueError, r"flip must lie in \[0, 1\], got 1.5"),
        ({"erase": float("nan")}, ValueError, "erase must lie in"),
        ({"erase": True}, TypeError, "erase must be a probability"),
        ({"erase_area": (0.3, 0.2)}, ValueError, "smallest ≤ largest"),
        ({"erase_area": 0.3}, TypeError, "erase_area must be a pair"),
    ],
)
def test_wrong_settings(fields: dict[str, object], error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=f"Augmentation: {problem}" if "≤" not in problem else problem):
        Augmentation(**fields)  # type: ignore[arg-type]


def test_wrong_batches() -> None:
    with pytest.raises(TypeError, match=r"images must be \[n, channels, height, width\], got \[12, 12\]"):
        augment(images()[0, 0], Augmentation(), generator())
    with pytest.raises(ValueError, match="shift 12 must be smaller than the image, 12×12"):
        augment(images(), Augmentation(shift=12), generator())


def test_normalizer_gives_mean_zero_and_deviation_one() -> None:
    x = images(50)
    normalizer = Normalizer.of(x)
    y = normalizer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = x.double()
    for channel in range(3):
        assert normalizer.mean[channel] == pytest.approx(exact[:, channel].mean().item(), rel=1e-12)
        assert normalizer.std[channel] == pytest.approx(exact[:, channel].std(correction=0).item(), rel=1e-12)
    assert y.double().mean((0, 2, 3)).abs().max() < 1e-6
    assert (y.double().std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_normalizer_of_a_constant_channel_divides_by_one() -> None:
    assert Normalizer.of(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)) == Normalizer((7.0,), (1.0,))
