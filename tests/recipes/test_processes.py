"""Two processes under torchrun's environment: the same masks, scales, weights, history and layers in both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

_SCRIPT = """
import json, os, sys
from datetime import timedelta
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
import fastcompress as fc
from fastcompress.errors import TrainingDiverged
from tests.recipes.small import full_recipe, network, samples

torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank, folder, todo = dist.get_rank(), sys.argv[1], json.loads(sys.argv[2])
data = samples()

class Data:
    def __init__(self, stop):
        self.count, self.stop = 0, stop
        self.loader = DataLoader(data, 8, sampler=DistributedSampler(data, seed=5))
        self.sampler = self.loader.sampler
    def __len__(self): return len(self.loader)
    def __iter__(self):
        for batch in self.loader:
            self.count += 1
            if self.count == self.stop: raise KeyboardInterrupt
            yield batch

def contrary(calls):  # what is fast on one rank is slow on the other, which must not matter
    return {name: 1.0 if (name == "dense") == (rank == 0) else 2.0 for name in calls}

def spoiled(output, batch):
    spoiled.calls += 1
    loss = nn.functional.cross_entropy(output, batch[1])
    return loss * float("nan") if rank == 1 and spoiled.calls == 9 else loss
spoiled.calls = 0

def run(name, stop=-1, **options):
    directory = f"{folder}/{name}"
    return fc.compress(network(), full_recipe(), Data(stop), epochs=3, checkpoint_dir=directory, checkpoint_every=4,
                       eval_fn=lambda m: float(rank), progress=False, timer=contrary, **options)

for name, stop in todo:
    if name == "diverged":
        try: run(name, loss_fn=spoiled)
        except TrainingDiverged as error: torch.save(str(error), f"{folder}/{name}{rank}.pt")
        continue
    try: result = run(name, stop)
    except KeyboardInterrupt: continue
    rows = json.dumps(result.history.to_json())
    kinds = [type(module).__name__ for module in result.model.modules()]
    torch.save([dict(result.trained.state_dict()), rows, kinds, result.score], f"{folder}/{name}{rank}.pt")
dist.destroy_process_group()
os._exit(0)  # not through the interpreter's end, where gloo's threads sometimes abort a process that is done
"""


def _launch(folder: Path, todo: list[tuple[str, int]]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _SCRIPT, str(folder), json.dumps(todo)]
        processes.append(subprocess.Popen(command, env={**os.environ, **place}))
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


def _saved(folder: Path, name: str) -> list[Any]:
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_ranks_agree_and_a_resumed_run_too(tmp_path: Path) -> None:
    # Both stop at the same batch and go on, as after Ctrl-C under torchrun.
    _launch(tmp_path, [("whole", -1), ("broken", 11), ("broken", -1), ("diverged", -1)])
    (one, rows, kinds, score), (other, other_rows, other_kinds, other_score) = _saved(tmp_path, "whole")
    assert any("mask" in name for name in one)
    assert any("input_fake_quant" in name for name in one)
    assert any("running_" in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rows == other_rows
    assert kinds == other_kinds
    assert "QuantConv2d" not in kinds  # by the first rank's stopwatch
    assert score == other_score == 0.0
    again, rows_again, *_ = _saved(tmp_path, "broken")[0]
    assert all(torch.equal(one[name], again[name]) for name in one)
    for row, same in zip(json.loads(rows), json.loads(rows_again), strict=True):
        assert {**row, "seconds": 0} == {**same, "seconds": 0}
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["last.pt"]
    for message in _saved(tmp_path, "diverged"):
        assert "at step 9 (epoch 2" in message
        assert "the last good checkpoint is" in message
