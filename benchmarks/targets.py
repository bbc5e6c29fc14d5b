"""The rows of the results table and the number each has to reach: data only."""

from __future__ import annotations

from benchmarks.language_targets import language_targets
from benchmarks.sparse_targets import sparse_targets
from benchmarks.target import Target, shape_name
from benchmarks.w4_targets import w4_targets

__all__ = ["LINEAR_SHAPES", "TARGETS", "Target", "by_key", "shape_name"]

#: M×K×N of the linears that are measured one by one.
LINEAR_SHAPES: tuple[tuple[int, int, int], ...] = (
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
    (512, 1024, 4096),
    (128, 4096, 4096),
)


def linear_targets() -> list[Target]:
    """Return the rows of the ``linear`` suite."""
    rows: list[Target] = []
    gemv = "QuantLinear, dynamic, 1×4096×4096, operands rotated"
    for shape in LINEAR_SHAPES:
        name = shape_name(shape)
        kernel, layer = f"linear_w8a8 kernel, u8 in, {name}", f"QuantLinear, dynamic, f32 in and out, {name}"
        rows += [
            Target(
                f"linear.kernel.{name}.own_ceiling", "linear", kernel, "int8 ceiling of the kernel's own ISA", 0.90, ""
            ),
            Target(
                f"linear.kernel.{name}.best_ceiling", "linear", kernel, "best int8 ceiling of the machine", 0.90, ""
            ),
            Target(
                f"linear.vector.{name}.ceiling",
                "linear",
                f"linear_w8a8 kernel, u8 in, forced to the best vector ISA (no tiles), {name}",
                "int8 ceiling of that ISA",
                0.90,
                "",
            ),
            Target(f"linear.kernel.{name}.int_mm", "linear", kernel, "torch._int_mm", 1.15),
            Target(f"linear.layer.{name}.fp32", "linear", layer, "torch fp32", 7.0),
            Target(f"linear.layer.{name}.bf16", "linear", layer, "torch bf16", 1.8),
        ]
    rows += [
        Target(
            "linear.gemv.1×4096×4096.bandwidth",
            "linear",
            gemv,
            "measured read bandwidth",
            0.85,
            unit="",
        ),
        Target("linear.gemv.1×4096×4096.fp32", "linear", gemv, "torch fp32, rotated", None),
        Target("linear.gemv.1×4096×4096.bf16", "linear", gemv, "torch bf16, rotated", None),
    ]
    rows += [
        Target(
            f"linear.avx2.{shape_name(shape)}.fp32",
            "linear",
            f"QuantLinear, dynamic, forced avx2, {shape_name(shape)}",
            "torch fp32",
            1.3,
        )
        for shape in LINEAR_SHAPES
    ]
    rows.append(
        Target(
            "linear.overhead.1×64×64",
            "linear",
            "QuantLinear, dynamic, eager call at 1×64×64",
            "absolute time",
            6.0,
            unit="µs",
            lower_is_better=True,
        )
    )
    return rows


def conv_targets() -> list[Target]:
    """Return the rows of the ``conv2d`` suite: geometric means over distinct shapes, batch 1, 224×224 networks."""
    rows: list[Target] = []
    groups = [
        ("resnet50", "ResNet-50"),
        ("mobilenet_v2", "MobileNetV2"),
        ("both", "both networks"),
    ]
    for key, name in groups:
        title = f"QuantConv2d, static, f32 in and out, distinct shapes of {name} (geometric mean)"
        rows += [
            Target(f"conv2d.{key}.fp32", "conv2d", title, "torch fp32 channels-last", 5.0),
            Target(f"conv2d.{key}.onednn", "conv2d", title, "torch oneDNN int8 (quantize + convolution)", 1.15),
            Target(f"conv2d.{key}.bf16", "conv2d", title, "torch bf16 channels-last", None),
            Target(
                f"conv2d.{key}.onednn_kernel",
                "conv2d",
                f"conv2d_w8a8 op, u8 in and out, distinct shapes of {name} (geometric mean)",
                "torch oneDNN int8, u8 in and out",
                None,
            ),
        ]
    depthwise = "QuantConv2d, depthwise 3×3 of MobileNetV2 (geometric mean)"
    rows += [
        Target("conv2d.depthwise3x3.fp32", "conv2d", depthwise, "torch fp32 channels-last", 4.0),
        Target("conv2d.depthwise3x3.onednn", "conv2d", depthwise, "torch oneDNN int8 (quantize + convolution)", None),
    ]
    return rows


def model_targets() -> list[Target]:
    """Return the rows of the suites that time whole models, and their agreement with fp32."""
    rows: list[Target] = []
    channels_last = "torch fp32 channels-last"
    minilm = "all-MiniLM-L6-v2, dynamic, last two value projections in float"
    models = [
        ("bert_base.1×128", "bert_base", "BERT-base (random weights), dynamic, 1×128", "torch fp32 eager", 5.5),
        ("minilm.1×128", "minilm", f"{minilm}, 1×128", "torch fp32 eager", 3.0),
        ("minilm.32×128", "minilm", f"{minilm}, 32×128", "torch fp32 eager", 4.0),
        ("efficientnet", "efficientnet_lite0", "EfficientNet-Lite0, static, 1×224×224", channels_last, 2.5),
    ]
    for key, suite, title, baseline, bound in models:
        rows += [
            Target(f"{key}.eager", suite, title, baseline, bound),
            Target(f"{key}.strongest", suite, title, "strongest dense (fp32 eager, compiled, bf16)", None),
        ]
    sentences, crops = "all-MiniLM-L6-v2, ≥ 500 real sentences", "EfficientNet-Lite0, ≥ 300 crops of real photos"
    rows += [
        Target("minilm.mean_cosine", "minilm", f"{sentences}: mean cosine", "fp32 embeddings", 0.999, unit=""),
        Target("minilm.min_cosine", "minilm", f"{sentences}: minimum cosine", "fp32 embeddings", 0.99, unit=""),
        Target(
            "minilm.mean_cosine_all", "minilm", f"{sentences}: mean cosine, every linear", "fp32 embeddings", 0.999, ""
        ),
        Target(
            "minilm.min_cosine_all", "minilm", f"{sentences}: minimum cosine, every linear", "fp32 embeddings", 0.99, ""
        ),
        Target("efficientnet.top1", "efficientnet_lite0", f"{crops}: top-1 agreement", "fp32", 95.0, unit="%"),
    ]
    return rows


TARGETS: tuple[Target, ...] = (
    *linear_targets(),
    *w4_targets(),
    *conv_targets(),
    *sparse_targets(),
    *model_targets(),
    *language_targets(),
)


def by_key(key: str) -> Target:
    """Return the row called ``key``; ``KeyError`` when there is none."""
    for target in TARGETS:
        if target.key == key:
            return target
    raise KeyError(f"benchmarks/targets.py has no row {key!r}")
