"""Two processes under torchrun's environment: the same masks, scales and weights in both."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

_SCRIPT = """
import os, sys
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
import fastcompress as fc
from tests.recipes.small import full_recipe, network, samples

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, folder, stop = dist.get_rank(), sys.argv[1], int(sys.argv[2])
data = samples()
loader = DataLoader(data, 8, sampler=DistributedSampler(data, seed=5))

class Data:
    def __init__(self): self.count = 0
    def __len__(self): return len(loader)
    sampler = loader.sampler
    def __iter__(self):
        for batch in loader:
            self.count += 1
            if self.count == stop: os._exit(7)
            yield batch

result = fc.compress(network(), full_recipe(), Data(), epochs=3, checkpoint_dir=folder, checkpoint_every=4,
                     convert=False, eval_fn=lambda m: 0.0, progress=False)
torch.save(dict(result.trained.state_dict()), f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
os._exit(0)  # not through the interpreter's end, where gloo's threads sometimes abort a process that is done
"""


def _launch(folder: Path, stop: int) -> list[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _SCRIPT, str(folder), str(stop)]
        processes.append(subprocess.Popen(command, env={**os.environ, **place}))
    try:
        return [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


def _states(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_agree_and_a_resumed_run_too(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _launch(whole, stop=-1) == [0, 0]
    one, other = _states(whole)
    # BatchNorm statistics are each rank's own until rank 0's are sent with the next forward pass.
    shared = [name for name in one if "running_" not in name]
    assert any("mask" in name for name in shared)
    assert any("input_fake_quant" in name for name in shared)
    assert all(torch.equal(one[name], other[name]) for name in shared)
    assert 7 in _launch(broken, stop=11)
    assert _launch(broken, stop=-1) == [0, 0]
    again = _states(broken)[0]
    assert all(torch.equal(one[name], again[name]) for name in one)
