"""Rows of the suites about weights in groups: kernels here, language models in `language_targets`."""

from __future__ import annotations

from benchmarks.target import Target, shape_name

__all__ = ["GEMM_SHAPES", "GEMV_SHAPES", "GROUP_SIZE", "SMALL_SHAPES", "w4_targets"]

GROUP_SIZE = 128

#: M×K×N with one row, with few, and with many.
GEMV_SHAPES: tuple[tuple[int, int, int], ...] = ((1, 4096, 4096), (1, 4096, 11008))
SMALL_SHAPES: tuple[tuple[int, int, int], ...] = ((4, 4096, 4096), (16, 4096, 4096))
GEMM_SHAPES: tuple[tuple[int, int, int], ...] = ((128, 4096, 4096), (512, 4096, 4096))

_INT4PACK = "torch._weight_int4pack_mm_for_cpu, rotated"


def w4_targets() -> list[Target]:
    """Return the rows of the ``linear_w4`` suite."""
    rows: list[Target] = []
    for shape in GEMV_SHAPES:
        for scheme, title in _titles(shape):
            key = f"w4.{scheme}.{shape_name(shape)}"
            bound = {"W8A16": None}.get(scheme, 0.9)
            rows.append(Target(f"{key}.bandwidth", "linear_w4", title, "measured read bandwidth", bound, ""))
            if scheme != "W8A16":
                rows.append(Target(f"{key}.int4pack", "linear_w4", title, _INT4PACK, 1.3))
                rows.append(Target(f"{key}.bf16", "linear_w4", title, "torch bf16, rotated", 6.0))
    for shape in SMALL_SHAPES:
        for scheme, title in _titles(shape):
            key = f"w4.{scheme}.{shape_name(shape)}"
            bound = 0.8 if scheme == "W4A8" and shape[0] == 4 else None
            rows.append(Target(f"{key}.bandwidth", "linear_w4", title, "measured read bandwidth", bound, ""))
            bound = 3.0 if scheme == "W4A8" and shape[0] == 16 else None
            rows.append(Target(f"{key}.best", "linear_w4", title, "better of int4pack and torch bf16, rotated", bound))
    for shape in GEMM_SHAPES:
        for scheme, title in _titles(shape):
            key, measured = f"w4.{scheme}.{shape_name(shape)}", scheme == "W4A8"
            if measured:
                rows.append(Target(f"{key}.ceiling", "linear_w4", title, "int8 ceiling", 0.6, ""))
            rows.append(Target(f"{key}.bf16", "linear_w4", title, "torch bf16", 1.5 if measured else None))
            rows.append(Target(f"{key}.fp32", "linear_w4", title, "torch fp32", 8.0 if measured else None))
    bits = "bits a weight of a packed 4096×4096 layer, group 128, bfloat16 scales"
    conv = "QuantConv2d, weights of four bits, distinct shapes of ResNet-50"
    rows += [
        Target("conv2d_w4.time", "conv2d_w4", f"{conv} (geometric mean)", "eight bits", None),
        Target("conv2d_w4.bytes", "conv2d_w4", f"{conv}: packed bytes", "eight bits", 0.55, "", True),
    ]
    return [*rows, Target("w4.bits", "linear_w4", bits, "absolute", 4.3, "bits", True)]


def _titles(shape: tuple[int, int, int]) -> list[tuple[str, str]]:
    rest = f"group {GROUP_SIZE}, f32 in and out, {shape_name(shape)}"
    return [(scheme, f"GroupQuantLinear {scheme}, {rest}") for scheme in ("W4A8", "W4A16", "W8A16")]
