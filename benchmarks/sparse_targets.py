"""Rows of the suites about sparse weights."""

from __future__ import annotations

from benchmarks.target import Target, shape_name

__all__ = ["FINE_SHAPES", "FLOAT_SPARSITIES", "SPARSE_SHAPES", "SPARSITIES", "sparse_targets"]

#: M×K×N of the block-sparse linears, and the sparsities they are measured at with the share of the ceiling to reach.
SPARSE_SHAPES: tuple[tuple[int, int, int], ...] = (
    (128, 768, 3072),
    (128, 3072, 768),
    (16, 4096, 4096),
    (512, 4096, 4096),
)
SPARSITIES: dict[float, float] = {0.8: 0.70, 0.9: 0.70, 0.95: 0.60}

#: Those with enough tokens for blocks whose kernels have tokens in lanes.
FINE_SHAPES = tuple(shape for shape in SPARSE_SHAPES if shape[0] >= 128)

#: Sparsity → speed-up over torch fp32 to reach, of 16x1 blocks and of single weights.
FLOAT_SPARSITIES: dict[float, tuple[float, float]] = {0.8: (8.0, 4.0), 0.9: (15.0, 8.0)}


def sparse_targets() -> list[Target]:
    """Return all of them."""
    return [*_int8_targets(), *_fine_targets(), *_float_targets(), *_other_targets()]


def _int8_targets() -> list[Target]:
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
                Target(f"{key}.cold", "sparse", f"{title}, call by call in turn", "torch._int_mm", None),
            ]
    gemv = "block-sparse 16x4 s8 kernel, 1×4096×4096, 90% sparse, operands rotated"
    return [*rows, Target("sparse.gemv.dense", "sparse", gemv, "dense int8 (ours), rotated", 7.0)]


def _fine_targets() -> list[Target]:
    rows: list[Target] = []
    for shape in FINE_SHAPES:
        for sparsity in SPARSITIES:
            key, rest = f"sparse.fine.{shape_name(shape)}.{sparsity}", f"{shape_name(shape)}, {sparsity:.0%} sparse"
            rows += [
                Target(
                    f"{key}.4x4", "sparse_fine", f"block-sparse 4x4 s8 kernel, u8 in, {rest}", "the 16x4 kernel", 0.9
                ),
                Target(
                    f"{key}.1x4",
                    "sparse_fine",
                    f"block-sparse 1x4 s8 kernel, u8 in, {rest}",
                    "fastest dense int8 (ours, torch._int_mm)",
                    5.0 if sparsity == 0.9 else None,
                ),
            ]
    for block, bound in (("16x4", 0.11), ("4x4", 0.11), ("1x4", 0.13)):
        title = f"bytes of a packed 4096×4096 layer, 90% sparse {block} s8"
        rows.append(Target(f"sparse.bytes.{block}", "sparse_fine", title, "dense int8", bound, "", True))
    return rows


def _float_targets() -> list[Target]:
    rows: list[Target] = []
    for shape in SPARSE_SHAPES:
        for sparsity, (blocks, single) in FLOAT_SPARSITIES.items():
            key, rest = f"sparse.float.{shape_name(shape)}.{sparsity}", f"{shape_name(shape)}, {sparsity:.0%} sparse"
            kernel = "block-sparse {} kernel, " + rest
            rows.append(Target(f"{key}.16x1", "sparse_float", kernel.format("16x1 f32"), "torch fp32", blocks))
            rows.append(Target(f"{key}.16x2", "sparse_float", kernel.format("16x2 bf16"), "torch bf16", None))
            if shape in FINE_SHAPES:
                rows.append(Target(f"{key}.4x1", "sparse_float", kernel.format("4x1 f32"), "torch fp32", None))
                rows.append(
                    Target(f"{key}.1x1", "sparse_float", f"unstructured f32 kernel, {rest}", "torch fp32", single)
                )
    return rows


def _other_targets() -> list[Target]:
    rows: list[Target] = []
    network = "distinct convolutions of ResNet-50 (geometric mean), 90% sparse"
    for block in ("16x4", "4x4", "1x4"):
        bound = 4.0 if block == "16x4" else None
        for form, key in (("u8 in and out", "u8"), ("f32 in and out", "f32")):
            title = f"conv2d_w8a8, {block} s8, {form}, {network}"
            rows.append(Target(f"sparse_conv.{block}.{key}", "sparse_conv", title, "dense W8A8 (ours)", bound))
    for block in ("16x1", "1x1"):
        title = f"conv2d_bsr, {block} f32, {network}"
        rows.append(Target(f"sparse_conv.{block}.fp32", "sparse_conv", title, "torch fp32 channels-last", None))
    even = "lowest sparsity from which {} is faster, 128×3072×768"
    for form, baseline, bound in (
        ("16x4 s8", "fastest dense int8 (ours, torch._int_mm)", 0.30),
        ("4x4 s8", "fastest dense int8 (ours, torch._int_mm)", None),
        ("1x4 s8", "fastest dense int8 (ours, torch._int_mm)", None),
        ("16x1 f32", "torch fp32", None),
        ("1x1 f32", "torch fp32", 0.60),
        ("16x2 bf16", "torch bf16", None),
    ):
        rows.append(
            Target(f"sparse_sweep.{form.split()[0]}", "sparse_sweep", even.format(form), baseline, bound, "", True)
        )
    bert = "BERT-base (random weights), 90% 16x4, dynamic, 1×128"
    worst = "one-shot pruning, agreement with SparseGPT minus that with magnitude, worst row at ≥ 50%"
    return [
        *rows,
        Target("bert_sparse.eager", "bert_sparse", bert, "torch fp32 eager", 10.0),
        Target("bert_sparse.dense_int8", "bert_sparse", bert, "its dense W8A8", 1.6),
        Target("pruning.minilm", "pruning", f"all-MiniLM-L6-v2, {worst}", "mean cosine", 0.001, ""),
        Target("pruning.efficientnet", "pruning", f"EfficientNet-Lite0, {worst}", "top-1 agreement", 0.001, ""),
    ]
