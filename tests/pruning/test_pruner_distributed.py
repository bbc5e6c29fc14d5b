"""Data-parallel training: the masks are the same on all ranks, and those that one process would choose."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from fastcompress.pruning import Pruner, PrunerConfig

from .models import mlp, vectors

CONFIGS = {
    "movement": PrunerConfig(0.8, criterion="movement", start_step=2, end_step=6, frequency=2),
    "taylor": PrunerConfig(0.8, "4x2", "taylor", start_step=2, end_step=6, frequency=2),
    "rigl": PrunerConfig(0.8, schedule="constant", end_step=6, frequency=2, regrow="rigl"),
    "random": PrunerConfig(0.8, criterion="random", start_step=2, end_step=6, frequency=2),
}


def train(config: PrunerConfig, rank: int, world: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The model's and the criterion's state after training on this rank's share of each batch."""
    model = mlp()
    pruner = Pruner(model, config)
    runner: nn.Module = model
    if world > 1:
        runner = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(7):
        x = vectors()[step % 3].chunk(world)[rank]
        optimizer.zero_grad()
        (runner(x) - 1).square().mean().backward()
        optimizer.step()
        pruner.step()
    return model.state_dict(), pruner.state_dict()["scores"]


def worker(rank: int, folder: str) -> None:
    timeout = timedelta(seconds=60)  # a rank that fails must not leave the other one waiting
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timeout)
    try:
        torch.save({name: train(config, rank, 2) for name, config in CONFIGS.items()}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
    # Not through the interpreter's end: there gloo's threads sometimes abort a process that has done its work.
    os._exit(0)


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_agree(tmp_path: Path) -> None:
    ranks = [mp.get_context("spawn").Process(target=worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, config in CONFIGS.items():
        for mine, other in zip(first[name], second[name], strict=True):
            assert mine.keys() == other.keys()
            assert all(torch.equal(mine[key], other[key]) for key in mine)
        state, scores = first[name]
        alone_state, alone_scores = train(config, 0, 1)
        for key, value in scores.items():
            torch.testing.assert_close(value, alone_scores[key], rtol=1e-3, atol=1e-5)
        for key, value in state.items():
            if key.endswith("mask"):
                # Sums in another order may turn a near tie.
                assert float((value != alone_state[key]).float().mean()) <= 0.02
                assert 0.19 < float(value.float().mean()) < 0.22 or config.pattern == "4x2"
