"""Rows of the suites about a language model with four-bit weights."""

from __future__ import annotations

from benchmarks.target import Target

__all__ = ["GROUP_SIZES", "language_targets"]

GROUP_SIZES = (32, 64, 128)

_MODEL = "SmolLM2-135M-Instruct"


def language_targets() -> list[Target]:
    """Return the rows of the ``smollm2``, ``perplexity``, ``gptq`` and ``minilm_w4`` suites."""
    return [*_speed_targets(), *_quality_targets()]


def _speed_targets() -> list[Target]:
    rows: list[Target] = []
    for scheme in ("W4A16", "W4A8"):
        title = f"{_MODEL}, its Q4_1 file as {scheme}, transformers"
        decode, prompt = f"smollm2.{scheme}.decode", f"smollm2.{scheme}.prompt"
        rows += [
            Target(decode, "smollm2", f"{title}, decode", "torch bf16 eager", 1.5),
            Target(f"{decode}.fp32", "smollm2", f"{title}, decode", "torch fp32 eager", None),
            Target(prompt, "smollm2", f"{title}, prompt of 128 tokens", "torch bf16 eager", 2.5),
            Target(f"{prompt}.fp32", "smollm2", f"{title}, prompt of 128 tokens", "torch fp32 eager", None),
            Target(f"{decode}.llama", "smollm2", f"{title}, decode", "llama.cpp, the same file", None),
            Target(f"{prompt}.llama", "smollm2", f"{title}, prompt of 128 tokens", "llama.cpp, the same file", None),
        ]
    size = f"{_MODEL}, tensor bytes of the loaded Q4_1 file"
    return [*rows, Target("smollm2.bytes", "smollm2", size, "the file", 1.1, "", True)]


def _quality_targets() -> list[Target]:
    def row(key: str, title: str, baseline: str, bound: float | None) -> Target:
        return Target(f"perplexity.{key}", "perplexity", f"{_MODEL}, {title}: perplexity", baseline, bound, "", True)

    rows = [
        row(f"W8A16.{algorithm}", f"W8A16, group 128, {algorithm.upper()}", "the dequantized original", 1.001)
        for algorithm in ("rtn", "gptq")
    ]
    for size in GROUP_SIZES:
        for algorithm in ("gptq", "awq", "hqq"):
            bound = 0.9999 if algorithm == "gptq" or size > 32 else None
            rows.append(row(f"{algorithm}.{size}", f"W4 symmetric, group {size}, {algorithm.upper()}", "RTN", bound))
    return [
        *rows,
        row("best.32", "W4 symmetric, group 32, the best", "the dequantized original", 1.04),
        Target("gptq.minutes", "gptq", f"GPTQ of {_MODEL}, 64×512 tokens", "absolute", 10, "min", True),
        *(
            Target(f"minilm_w4.{name}", "minilm_w4", f"all-MiniLM-L6-v2, W4A16 group 32, {title}", "fp32", 0.995, "")
            for name, title in (("rtn", "RTN: mean cosine"), ("gptq", "GPTQ with zero points: mean cosine"))
        ),
    ]
