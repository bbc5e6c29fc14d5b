"""``make demo``: compress pretrained networks and compare them with the dense ones: size, speed, agreement.

- all-MiniLM-L6-v2 (sentence embeddings), dynamic int8. Text: the Python language reference and scikit-learn's data set
  descriptions, both part of what is installed; no document serves calibration and evaluation alike.
- EfficientNet-Lite0 (ImageNet classes), static int8. Images: crops of the photos inside scikit-image's and
  scikit-learn's packages; no photo serves both.

- all-MiniLM-L6-v2 once more, half of the 16x4 blocks of its feed-forward layers pruned by SparseGPT before it is
  quantized: those layers run block-sparse. In one shot, without training, pruning costs accuracy, as the table shows.

- A small network on scikit-learn's digits, trained here and then compressed by a full recipe: gradual pruning to 90%
  4x4, distillation and quantization-aware training at once. Its report goes to ``build/demo-report.html``.

- SmolLM2-135M-Instruct, a language model, loaded from its four-bit file: tokens per second and the text itself, dense
  and with four-bit weights.

The dense time is the best of torch fp32 eager, fp32 compiled and bf16. Exit status 1 when a quantized network agrees
with its fp32 original less than it has to, or the recipe loses more than two points of accuracy.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import fastcompress as fc
from examples.digits import accuracy_on, compress_digits, digits, train_dense
from examples.real_models import embed, load_efficientnet_lite0, load_minilm, photo_crops, sentences, tokenize
from examples.schemes import EFFICIENTNET_LITE0, MINILM, MINILM_PRUNING
from examples.text import print_text, run_text
from fastcompress.report import BenchmarkResult, BenchmarkRow

__all__ = ["main"]

TOKENS = 128
REPORT = Path("build/demo-report.html")
MAX_DROP = 0.02
Inputs = Tensor | Mapping[str, Tensor]
TEXT = "text: the Python language reference and scikit-learn's data set descriptions, split by document"
IMAGES = "images: crops of the photos inside scikit-image's and scikit-learn's packages, split by photo"


@dataclass(frozen=True)
class Agreement:
    """How closely the compressed network follows the dense one, in words, and whether that is enough."""

    text: str
    enough: bool


@dataclass(frozen=True)
class Case:
    """One network of the demo: how to quantize it, what to time, how to judge it."""

    name: str
    config: fc.QuantConfig
    data: str
    load: Callable[[], nn.Module]
    calibration: Sequence[Inputs]
    example: Inputs
    judge: Callable[[nn.Module, nn.Module, Callable[[], None]], Agreement]
    judge_steps: int
    pruning: Mapping[str, Any] | None = None  # what `fc.prune` is told


@dataclass(frozen=True)
class Outcome:
    """What one line of the table shows."""

    case: Case
    model: nn.Module
    dense_bytes: int
    file_bytes: int
    times: BenchmarkResult
    agreement: Agreement


def minilm_case(quick: bool) -> Case:
    """Return the sentence-embedding network; judged by the cosine between its embeddings and fp32's."""
    _, tokenizer = load_minilm()
    text, batch = sentences("evaluation", 64 if quick else 512), 32
    batches = [text[start : start + batch] for start in range(0, len(text), batch)]

    def tokens(split_text: list[str]) -> dict[str, Tensor]:
        joined = [" ".join(split_text)]  # long enough to fill the 128 tokens that are timed
        return tokenize(tokenizer, joined, max_length=TOKENS)

    def judge(dense: nn.Module, compressed: nn.Module, advance: Callable[[], None]) -> Agreement:
        cosines = []
        for part in batches:
            both = embed(dense, tokenizer, part), embed(compressed, tokenizer, part)
            cosines.append(torch.sum(both[0] * both[1], dim=1))
            advance()
        cosine = torch.cat(cosines)
        mean, least = cosine.mean().item(), cosine.min().item()
        words = f"cosine of {len(cosine)} embeddings: mean {mean:.4f}, min {least:.4f}"
        return Agreement(words, mean >= 0.999 and least >= 0.99)

    calibration_text = sentences("calibration", 160)
    calibration = [tokens(calibration_text[start : start + 20]) for start in range(0, 160, 20)]
    example = tokens(text[:20])
    return Case("all-MiniLM-L6-v2", MINILM, TEXT, lambda: load_minilm()[0], calibration, example, judge, len(batches))


def sparse_case(quick: bool) -> Case:
    """Return the sentence-embedding network pruned to blocks; nothing is asked of its agreement."""
    plain = minilm_case(quick)

    def judge(dense: nn.Module, compressed: nn.Module, advance: Callable[[], None]) -> Agreement:
        return Agreement(plain.judge(dense, compressed, advance).text + ", untrained", True)

    return replace(plain, name="all-MiniLM-L6-v2, pruned", judge=judge, pruning=MINILM_PRUNING)


def efficientnet_case(quick: bool) -> Case:
    """Return the image classifier; judged by how often its first choice is fp32's."""
    batches = photo_crops("evaluation", 32 if quick else 304).split(16)

    def judge(dense: nn.Module, compressed: nn.Module, advance: Callable[[], None]) -> Agreement:
        same = []
        for crops in batches:
            same.append(dense(crops).argmax(1) == compressed(crops).argmax(1))
            advance()
        agreed = torch.cat(same).float().mean().item()
        return Agreement(f"top-1 of {len(torch.cat(same))} crops: {agreed:.1%}", agreed >= 0.95)

    calibration = list(photo_crops("calibration", 32 if quick else 96).split(8))
    image = photo_crops("evaluation", 1).to(memory_format=torch.channels_last)
    load, steps = load_efficientnet_lite0, len(batches)
    return Case("EfficientNet-Lite0", EFFICIENTNET_LITE0, IMAGES, load, calibration, image, judge, steps)


def tensor_bytes(model: nn.Module) -> int:
    """Return the size of a float model's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def save_and_load(case: Case, model: nn.Module) -> tuple[nn.Module, int]:
    """Save a compressed model, load it into a fresh float one, and return that and the size of the files."""
    with tempfile.TemporaryDirectory(prefix="fastcompress-demo-") as folder:
        fc.save(model, folder)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        return fc.load(folder, model=case.load()), size


def run_case(case: Case, quick: bool, progress: Progress) -> Outcome:
    """Quantize, save, load, time and judge one network; what is timed and judged is the loaded one."""
    task = progress.add_task(case.name, total=4 + case.judge_steps, what="load")
    advance = partial(progress.advance, task)
    dense = case.load()
    work = dense
    if case.pruning is not None:
        progress.update(task, what="prune (SparseGPT)")
        work = fc.prune(dense, **case.pruning, calibration_data=case.calibration, progress=False)
    progress.update(task, advance=1, what=f"quantize ({case.config.scheme}), keeping what is faster")
    quantized = fc.quantize(work, case.config, case.calibration, example_inputs=case.example, progress=False)
    progress.update(task, advance=1, what="save and load")
    compressed, file_bytes = save_and_load(case, quantized)
    progress.update(task, advance=1, what="compile the dense network, then time all")
    times = fc.benchmark(compressed, dense, case.example, compiled=not quick, min_time_s=0.1 if quick else 1.0)
    for row in times.rows:
        if row.seconds is None:
            progress.console.print(f"{case.name}: '{row.name}' could not be timed: {row.note}", markup=False)
    progress.update(task, advance=1, what="compare with fp32")
    with torch.inference_mode():
        agreement = case.judge(dense, compressed, advance)
    progress.update(task, what="done")
    return Outcome(case, compressed, tensor_bytes(dense), file_bytes, times, agreement)


def milliseconds(row: BenchmarkRow) -> str:
    """Return a measured time as the table shows it."""
    return "not timed" if row.seconds is None else f"{row.seconds * 1e3:.2f} ms"


def scheme_name(case: Case) -> str:
    """Return what was done to a network, in a few words."""
    pruning = case.pruning
    before = "" if pruning is None else f"{pruning['sparsity']:.0%} {pruning['pattern']} + "
    return before + case.config.scheme


def results_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the one table of the demo."""
    table = Table(title=f"compressed against dense, batch 1, {torch.get_num_threads()} threads")
    for header in ("network", "scheme", "size", "dense, strongest", "compressed", "speed-up", "agreement with fp32"):
        table.add_column(header, justify="left" if header in ("network", "scheme") else "right")
    for seen in outcomes:
        dense = seen.times.strongest_dense
        table.add_row(
            seen.case.name,
            scheme_name(seen.case),
            f"{seen.dense_bytes / 1e6:.1f} → {seen.file_bytes / 1e6:.1f} MB",
            f"{milliseconds(dense)} ({dense.name})",
            milliseconds(seen.times.compressed),
            f"{seen.times.speedup:.2f}×",
            seen.agreement.text + ("" if seen.agreement.enough else "  TOO LOW"),
        )
    return table


def run_recipe(quick: bool, progress: Progress) -> fc.recipes.CompressionResult:
    """Train the digits' network and compress it; a bar shows the steps."""
    task = progress.add_task("digits, full recipe", total=2, what="train the dense network")
    data = digits()
    dense = train_dense(data, 4 if quick else 10)
    progress.update(task, advance=1, what="prune, distil and quantize while training")
    result = compress_digits(dense, data, 6 if quick else 12, progress=False)
    progress.update(task, advance=1, what="done")
    return result


def print_recipe(result: fc.recipes.CompressionResult, console: Console) -> bool:
    """Print what the recipe made and write its report; returns whether the accuracy is kept."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    console.print("\ndigits, 90% 4x4 + distillation + W8A8 while training")
    console.print(result.report(REPORT, eval_fn=accuracy_on(digits()), min_seconds=0.1))
    console.print(f"the same with plots: {REPORT}", highlight=False)
    assert result.drop is not None
    return result.drop <= MAX_DROP


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less data and no compiled baseline, to see that it runs")
    quick = parser.parse_args(argv).quick
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a log file has no width to respect
    counters = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[what]}"))
    outcomes = []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), *counters, console=console) as progress:
        for make in (minilm_case, efficientnet_case, sparse_case):
            outcomes.append(run_case(make(quick), quick, progress))
        recipe = run_recipe(quick, progress)
        written = run_text(quick, progress)
    console.print(results_table(outcomes))
    for seen in outcomes:
        console.print(f"{seen.case.name}, {seen.case.data} into calibration and evaluation", highlight=False)
    for seen in outcomes:
        console.print(f"\n{seen.case.name}: what runs in each layer, and why")
        console.print(fc.explain(seen.model, seen.case.example))
    kept = print_recipe(recipe, console)
    print_text(written, console)
    return 0 if kept and all(seen.agreement.enough for seen in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
