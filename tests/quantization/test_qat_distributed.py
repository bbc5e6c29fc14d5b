"""Two processes with different data: `DistributedDataParallel` trains, and both agree on every range and scale."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import fastcompress as fc
from fastcompress.quantization import QATConfig, freeze_observers, set_fake_quant
from tests.quantization.qat_models import conv_net, images, input_of

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform != "linux", reason="needs torch's gloo"
)


def work(rank: int, folder: str) -> None:
    """One process: a few steps of each method; its states and ranges go into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        result: dict[str, Any] = {}
        for method in ("ste", "lsq"):
            mine = images(100 + rank, 4)
            model = fc.prepare(conv_net(), QATConfig(method=method, observer_momentum=0.5), mine, state="off")
            parallel = nn.parallel.DistributedDataParallel(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for step, state in enumerate(("off", "observe", "train", "train", "frozen")):
                freeze_observers(model) if state == "frozen" else set_fake_quant(model, state)
                optimizer.zero_grad()
                parallel(images(100 + 10 * step + rank, 4)).square().mean().backward()
                optimizer.step()
                quantizer = input_of(model[0])
                result[f"{method} range {step}"] = torch.stack((quantizer.low, quantizer.high))
            result[f"{method} state"] = {k: v for k, v in model.state_dict().items() if "running" not in k}
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
    # Not through the interpreter's end: there gloo's threads sometimes abort a process that has done its work.
    os._exit(0)


def test_processes_agree(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for method in ("ste", "lsq"):
        for key, value in first[f"{method} state"].items():
            assert torch.equal(value, second[f"{method} state"][key]), key
        seen = torch.cat([images(110 + rank, 4) for rank in (0, 1)])
        expected = torch.stack((seen.min(), seen.max()))
        assert torch.equal(first[f"{method} range 1"], expected)
        assert torch.equal(first[f"{method} range 0"], torch.zeros(2))
    later = torch.cat([images(120 + rank, 4) for rank in (0, 1)])
    half = 0.5 * first["ste range 1"] + 0.5 * torch.stack((later.min(), later.max()))
    torch.testing.assert_close(first["ste range 2"], half)
    assert torch.equal(first["ste range 3"], first["ste range 4"])
