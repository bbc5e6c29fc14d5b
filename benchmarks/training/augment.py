"""Random changes to a batch of images, drawn from one generator in a fixed order, so that a run can be repeated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Augmentation", "Normalizer", "augment"]


@dataclass(frozen=True)
class Augmentation:
    """What `augment` does; the defaults do nothing.

    Attributes:
        shift: largest shift in pixels, each way; what moves in is ``fill``. The same as padding and random cropping.
        flip: probability of mirroring left and right.
        erase: probability of erasing one rectangle.
        erase_area: smallest and largest share of the image that a rectangle takes.
    """

    shift: int = 0
    flip: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 0.25)

    def __post_init__(self) -> None:
        if isinstance(self.shift, bool) or not isinstance(self.shift, int):
            raise TypeError(f"Augmentation: shift must be a whole number of pixels, got {self.shift!r:.60}")
        if self.shift < 0:
            raise ValueError(f"Augmentation: shift must be at least 0, got {self.shift}")
        for name in ("flip", "erase"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Augmentation: {name} must be a probability, got {value!r:.60}")
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"Augmentation: {name} must lie in [0, 1], got {value!r}")
        if not isinstance(self.erase_area, tuple) or len(self.erase_area) != 2:
            raise TypeError(f"Augmentation: erase_area must be a pair of shares, got {self.erase_area!r:.60}")
        low, high = self.erase_area
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"Augmentation: erase_area must be 0 < smallest ≤ largest ≤ 1, got {self.erase_area!r}")


@dataclass(frozen=True)
class Normalizer:
    """Turns bytes into floats of mean 0 and standard deviation 1, by the statistics of the training images.

    Attributes:
        mean, std: one number for each channel, in units of the bytes (0 to 255).
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> Normalizer:
        """The statistics of uint8 ``[n, channels, height, width]``; exact sums, so the same on every machine."""
        values = torch.arange(256, dtype=torch.float64)
        mean, std = [], []
        for channel in images.unbind(1):
            share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
            centre = float((share * values).sum())
            mean.append(centre)
            std.append(math.sqrt(float((share * (values - centre) ** 2).sum())) or 1.0)
        return cls(tuple(mean), tuple(std))

    def __call__(self, images: Tensor) -> Tensor:
        """Normalized float32 images in channels-last layout, from uint8 ``[n, channels, height, width]``."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, config: Augmentation, generator: torch.Generator, fill: float = 0.0) -> Tensor:
    """Shift, mirror and erase each image of a batch by itself.

    Args:
        images: bytes or floats, ``[n, channels, height, width]``; unchanged.
        config: what is done.
        generator: where every random number comes from. A batch draws the same number of values whatever ``config``
            leaves out, so switching one change off does not disturb the others.
        fill: what moves in and what erased pixels become; 0 is black in bytes, the mean in normalized images.

    Returns:
        A new tensor of the same type and shape, channels-last.

    Raises:
        TypeError: no batch of images.
        ValueError: the shift is not smaller than the image.

    Example:
        >>> batch = augment(images, Augmentation(shift=2, flip=0.5), torch.Generator().manual_seed(0))

    Source: He et al. 2016, section 4.2 (padding, cropping, mirroring); Zhong et al. 2020, algorithm 1 (erasing),
    with one value in place of noise.
    """
    if images.dim() != 4:
        raise TypeError(f"augment: images must be [n, channels, height, width], got {list(images.shape)}")
    count, _, height, width = images.shape
    if config.shift >= min(height, width):
        raise ValueError(f"augment: shift {config.shift} must be smaller than the image, {height}×{width}")
    draws = torch.rand(8, count, generator=generator)
    span = 2 * config.shift + 1
    down, right = ((draws[axis] * span).long() - config.shift for axis in (0, 1))
    rows = torch.arange(height) + down[:, None]
    columns = torch.arange(width)
    columns = torch.where(draws[2, :, None] < config.flip, columns.flip(0), columns) + right[:, None]
    outside = _outside(rows, height)[:, :, None] | _outside(columns, width)[:, None, :]
    outside |= _erased(config, draws[3:], height, width)
    batch = torch.arange(count)[:, None, None]
    pixels = images.permute(0, 2, 3, 1)
    moved = pixels[batch, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    moved.masked_fill_(outside[..., None], fill)
    return moved.permute(0, 3, 1, 2)


def _outside(index: Tensor, size: int) -> Tensor:
    return (index < 0) | (index >= size)


def _erased(config: Augmentation, draws: Tensor, height: int, width: int) -> Tensor:
    """Which pixels fall into each image's rectangle: bool ``[n, height, width]``.

    Area and aspect ratio (0.3 to 1/0.3, evenly on a logarithmic scale) are drawn once, and the sides cut to the image.
    """
    chosen, area, aspect, top, left = draws
    low, high = config.erase_area
    pixels = (low + (high - low) * area) * height * width
    ratio = torch.exp((2 * aspect - 1) * math.log(1 / 0.3))
    tall = (pixels * ratio).sqrt().round().clamp(1, height)
    wide = (pixels / ratio).sqrt().round().clamp(1, width)
    first_row = (top * (height - tall + 1)).floor()
    first_column = (left * (width - wide + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= first_row[:, None]) & (rows < (first_row + tall)[:, None])
    in_columns = (columns >= first_column[:, None]) & (columns < (first_column + wide)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :] & (chosen < config.erase)[:, None, None]
