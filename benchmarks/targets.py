"""The rows of the results table and the number each has to reach: data only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LINEAR_SHAPES", "SPARSE_SHAPES", "SPARSITIES", "TARGETS", "Target", "by_key", "shape_name"]

#: M×K×N of the linears that are measured one by one.
LINEAR_SHAPES: tuple[tuple[int, int, int], ...] = (
    (128, 768, 768),
    (128, 768, 3072),
    (128, 3072, 768),
    (512, 1024, 4096),
    (128, 4096, 4096),
)


#: M×K×N of the block-sparse linears, and the sparsities they are measured at with the share of the ceiling to reach.
SPARSE_SHAPES: tuple[tuple[int, int, int], ...] = (
    (128, 768, 3072),
    (128, 3072, 768),
    (16, 4096, 4096),
    (512, 4096, 4096),
)
SPARSITIES: dict[float, float] = {0.8: 0.70, 0.9: 0.70, 0.95: 0.60}


@dataclass(frozen=True)
class Target:
    """One row: what is measured, against which baseline, and the bound to meet (``None``: for information)."""

    key: str
    suite: str
    title: str
    baseline: str
    bound: float | None
    unit: str = "×"
    lower_is_better: bool = False

    def is_met(self, value: float) -> bool | None:
        """Return whether ``value`` meets the bound; ``None`` when the row has none."""
        if self.bound is None:
            return None
        return value <= self.bound if self.lower_is_better else value >= self.bound

    def bound_text(self) -> str:
        """Return the bound as the table shows it, for example ``≥ 0.90``."""
        if self.bound is None:
            return ""
        return f"{'≤' if self.lower_is_better else '≥'} {self.bound:g}{unit_suffix(self.unit)}"


def unit_suffix(unit: str) -> str:
    """Return the unit as it follows a number: ``×`` directly, words after a space."""
    return unit if unit in ("×", "%", "") else f" {unit}"


def shape_name(shape: tuple[int, int, int]) -> str:
    """Return ``M×K×N``."""
    return "×".join(map(str, shape))


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


def sparse_targets() -> list[Target]:
    """Return the rows of the ``sparse`` suite: 16x4 blocks in int8."""
    rows: list[Target] = []
    for shape in SPARSE_SHAPES:
        for sparsity, bound in SPARSITIES.items():
            title = f"block-sparse 16x4 s8 kernel, u8 in, {shape_name(shape)}, {sparsity:.0%} sparse"
            key = f"sparse.kernel.{shape_name(shape)}.{sparsity}"
            rows += [
                Target(f"{key}.ceiling", "sparse", title, "int8 ceiling, non-zero blocks only", bound, ""),
                Target(
                    f"{key}.ceiling_u8", "sparse", f"{title}, u8 out", "int8 ceiling, non-zero blocks only", None, ""
                ),
                Target(f"{key}.dense", "sparse", title, "fastest dense int8 (ours, torch._int_mm)", None),
                Target(f"{key}.int_mm", "sparse", title, "torch._int_mm", 8.5 if sparsity == 0.9 else None),
            ]
    gemv = "block-sparse 16x4 s8 kernel, 1×4096×4096, 90% sparse, operands rotated"
    rows += [
        Target("sparse.gemv.dense", "sparse", gemv, "dense int8 (ours), rotated", 7.0),
        Target(
            "sparse.bytes", "sparse", "bytes of a packed 4096×4096 layer, 90% sparse 16x4", "dense int8", 0.11, "", True
        ),
        Target(
            "sparse.break_even",
            "sparse",
            "lowest block sparsity at which 16x4 s8 is faster, 128×3072×768",
            "dense int8 (ours)",
            0.30,
            "",
            True,
        ),
    ]
    bert = "BERT-base (random weights), 90% 16x4, dynamic, 1×128"
    rows += [
        Target("bert_sparse.eager", "bert_sparse", bert, "torch fp32 eager", 10.0),
        Target("bert_sparse.dense_int8", "bert_sparse", bert, "its dense W8A8", 1.6),
    ]
    worst = "one-shot pruning, agreement with SparseGPT minus that with magnitude, worst row at ≥ 50%"
    rows += [
        Target("pruning.minilm", "pruning", f"all-MiniLM-L6-v2, {worst}", "mean cosine", 0.0, ""),
        Target("pruning.efficientnet", "pruning", f"EfficientNet-Lite0, {worst}", "top-1 agreement", 0.0, ""),
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


TARGETS: tuple[Target, ...] = (*linear_targets(), *conv_targets(), *sparse_targets(), *model_targets())


def by_key(key: str) -> Target:
    """Return the row called ``key``; ``KeyError`` when there is none."""
    for target in TARGETS:
        if target.key == key:
            return target
    raise KeyError(f"benchmarks/targets.py has no row {key!r}")
