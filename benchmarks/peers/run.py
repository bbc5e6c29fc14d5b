"""Time ONNX Runtime and OpenVINO on the benchmark's networks; what is not installed is said, and left out."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness.suite import Context
from benchmarks.harness.timing import interleave
from benchmarks.peers import onnxruntime_peer, openvino_peer
from examples.real_models import load_efficientnet_lite0, load_minilm

__all__ = ["run"]

PEERS = {
    "onnxruntime": (("onnxruntime", "onnx", "onnxscript"), onnxruntime_peer.candidates),
    "openvino": (("openvino",), openvino_peer.candidates),
}


class TokensOnly(nn.Module):
    """A language model as a function of token numbers alone, which every exporter understands."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the last hidden state ``[batch, tokens, features]``."""
        hidden: Tensor = self.model(input_ids=input_ids).last_hidden_state
        return hidden


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Return the networks and one batch for each."""
    minilm, _ = load_minilm()
    return {
        "minilm 1×128": (TokensOnly(minilm).eval(), torch.randint(1000, 20000, (1, 128))),
        "efficientnet_lite0 1×224×224": (load_efficientnet_lite0(), torch.rand(1, 3, 224, 224)),
    }


def run(context: Context) -> None:
    """Record each peer's milliseconds in the details; peers have no target of their own."""
    present = {}
    for peer, (packages, candidates) in PEERS.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            context.say(f"skipped {peer}: not installed ({', '.join(missing)})")
            context.report.details.setdefault("peers", []).append({"peer": peer, "skipped": f"no {', '.join(missing)}"})
        else:
            present[peer] = candidates
    if not present:
        return
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, x) in networks().items():
            calls: dict[str, Callable[[], object]] = {}
            for peer, candidates in present.items():
                with context.part(f"{peer} {name}"):
                    calls |= candidates(model, x, threads, Path(folder))
            if calls:
                times = interleave(calls, context.budget)
                line = {candidate: round(timing.median * 1e3, 4) for candidate, timing in times.items()}
                context.report.details.setdefault("peers", []).append({"model": name, "times_ms": line})
                context.say(f"  {name}: {line} ms")
