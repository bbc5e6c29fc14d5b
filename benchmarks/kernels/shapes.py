"""The distinct convolutions of ResNet-50 and MobileNetV2 (batch 1, 224×224), written out from the papers' tables."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ConvShape", "mobilenet_v2", "resnet50"]


@dataclass(frozen=True)
class ConvShape:
    """One convolution: channels, square kernel, stride, groups and the square input's side."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    groups: int
    side: int

    @property
    def padding(self) -> int:
        """The padding that keeps the side at stride 1."""
        return self.kernel // 2

    @property
    def operations(self) -> float:
        """Multiplications and additions of one image."""
        out = (self.side + 2 * self.padding - self.kernel) // self.stride + 1
        return 2.0 * out * out * self.out_channels * self.kernel**2 * (self.in_channels // self.groups)

    @property
    def float_bytes(self) -> float:
        """Bytes of input pixels that are read and output pixels that are written, in float32, for one image."""
        out = (self.side + 2 * self.padding - self.kernel) // self.stride + 1
        read = self.side // self.stride if self.kernel == 1 else self.side
        return 4.0 * (read * read * self.in_channels + out * out * self.out_channels)

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.groups == self.in_channels == self.out_channels

    def __str__(self) -> str:
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{self.in_channels}→{self.out_channels} {self.kernel}×{self.kernel}/{self.stride}{groups} @{self.side}"


def distinct(shapes: list[ConvShape]) -> tuple[ConvShape, ...]:
    """Return ``shapes`` without repetitions, in their order."""
    return tuple(dict.fromkeys(shapes))


def resnet50() -> tuple[ConvShape, ...]:
    """Return ResNet-50's distinct convolutions, stride in the 3×3 (He et al. 2015, table 1; v1.5)."""
    shapes = [ConvShape(3, 64, 7, 2, 1, 224)]
    channels, side = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            out = side // stride
            shapes += [ConvShape(channels, width, 1, 1, 1, side), ConvShape(width, width, 3, stride, 1, side)]
            shapes.append(ConvShape(width, 4 * width, 1, 1, 1, out))
            if block == 0:
                shapes.append(ConvShape(channels, 4 * width, 1, stride, 1, side))
            channels, side = 4 * width, out
    return distinct(shapes)


def mobilenet_v2() -> tuple[ConvShape, ...]:
    """Return MobileNetV2's distinct convolutions (Sandler et al. 2018, table 2)."""
    shapes = [ConvShape(3, 32, 3, 2, 1, 224)]
    channels, side = 32, 112
    for expansion, out_channels, blocks, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            hidden = channels * expansion
            if expansion > 1:
                shapes.append(ConvShape(channels, hidden, 1, 1, 1, side))
            shapes.append(ConvShape(hidden, hidden, 3, stride, hidden, side))
            side //= stride
            shapes.append(ConvShape(hidden, out_channels, 1, 1, 1, side))
            channels = out_channels
    shapes.append(ConvShape(320, 1280, 1, 1, 1, 7))
    return distinct(shapes)
