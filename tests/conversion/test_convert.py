"""`convert`: masks become block-sparse layers where the stopwatch says so, and zeros in dense layers elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastcompress as fc
from fastcompress.nn import QuantLinear, SparseConv2d, SparseLinear, SparseQuantLinear
from fastcompress.pruning import masked
from fastcompress.record import record_of
from tests.conversion.cases import LOSES, WINS, images, linears, network, outputs, stopwatch


def test_where_sparse_wins_masks_become_sparse_layers() -> None:
    pruned = fc.prune(network(), 0.9, "16x1")
    seen: list[Any] = []
    sparse = fc.convert(pruned, example_inputs=images(), timer=stopwatch(3.0, 1.0, seen))
    assert [type(layer) for layer in sparse] == [SparseConv2d, nn.ReLU, SparseConv2d, nn.Flatten, SparseLinear]
    assert seen == [(2, 16, 8, 8), (2, 16, 3, 3), (2, 32)]
    for index in (0, 2, 4):
        assert sparse[index].block_size == (16, 1)
        assert torch.equal(sparse[index].dequantize(), pruned[index].weight)
    torch.testing.assert_close(outputs(sparse, images()), outputs(pruned, images()))
    assert not masked(sparse)
    assert list(masked(pruned)) == ["0", "2", "4"]
    record = record_of(sparse)
    assert record is not None
    assert record.scheme == "sparse"
    decision = record["4"]
    assert (decision.action, decision.kind, decision.speedup) == ("sparse", "Linear", 3.0)
    assert decision.shapes == ((2, 144),)
    assert decision.kernel == sparse[4].kernel_name()
    assert decision.reason == "sparse measured 3.00× as fast as dense here; 10% of its 16x1 blocks are not zero"


def test_where_sparse_loses_the_zeros_are_written_down() -> None:
    pruned = fc.prune(network(), 0.9, "16x1")
    dense = fc.convert(pruned, example_inputs=images(), timer=LOSES)
    assert [type(layer) for layer in dense] == [type(layer) for layer in network()]
    assert not masked(dense)
    assert list(dense.state_dict()) == list(network().state_dict())
    assert torch.equal(outputs(dense, images()), outputs(pruned, images()))
    decision = record_of(dense)["4"]  # type: ignore[index]
    assert (decision.action, decision.dense_seconds, decision.quantized_seconds) == ("kept", 1.0, 2.0)
    assert decision.reason == (
        "sparse measured 0.50× as fast as dense here, dense is kept; 10% of its 16x1 blocks are not zero; its zeros "
        "are written into the dense weight"
    )


@pytest.mark.parametrize(
    ("pattern", "sparsity", "block", "share"),
    [
        ("16x1", 0.9, (16, 1), "10% of its 16x1"),
        ("4x1", 0.9, (4, 1), "10% of its 4x1"),
        ("16x4", 0.75, (16, 1), "25% of its 16x1"),
        ("unstructured", 0.98, (1, 1), "2% of its 1x1"),
        ("1:8", 0.875, (1, 1), "12% of its 1x1"),
    ],
)
def test_every_pattern_runs_through_the_nearest_blocks(
    pattern: str, sparsity: float, block: tuple[int, int], share: str
) -> None:
    torch.manual_seed(0)
    pruned = fc.prune(nn.Sequential(nn.Linear(256, 64)).eval(), sparsity, pattern)
    sparse = fc.convert(pruned, timer=WINS)
    assert sparse[0].block_size == block
    assert share in record_of(sparse)["0"].reason  # type: ignore[index]


def test_of_two_forms_the_faster_one_is_taken() -> None:
    pruned = fc.prune(nn.Sequential(nn.Linear(64, 64)).eval(), 0.95, "unstructured")
    calls: list[tuple[int, int]] = []

    def timer(functions: Mapping[str, Any]) -> dict[str, float]:
        block = functions["sparse"].func.block_size
        calls.append(block)
        return {"dense": 1.0, "sparse": 0.5 if block == (4, 1) else 0.7}

    sparse = fc.convert(pruned, timer=timer)
    assert set(calls) == {(1, 1), (4, 1)}
    assert len(calls) == 4  # two forms at 1 and at 128 tokens
    assert sparse[0].block_size == (4, 1)


def test_what_keeps_too_many_blocks_is_not_even_measured() -> None:
    pruned = fc.prune(nn.Sequential(nn.Linear(64, 64).bfloat16()).eval(), 0.5, "2:4")

    def never(functions: Mapping[str, Any]) -> dict[str, float]:
        raise AssertionError("measured")

    dense = fc.convert(pruned, timer=never)
    assert type(dense[0]) is nn.Linear
    reason = record_of(dense)["0"].reason  # type: ignore[index]
    assert reason.startswith("100% of its 16x2 blocks are not zero, too many to gain anything (up to 50% are expected")


def test_without_examples_linears_are_measured_and_convolutions_go_by_density() -> None:
    pruned = fc.prune(network(), {"0": 0.9, "2": 0.1, "4": 0.9}, "16x1")
    seen: list[Any] = []
    sparse = fc.convert(pruned, timer=stopwatch(3.0, 1.0, seen))
    assert [type(sparse[i]) for i in (0, 2, 4)] == [SparseConv2d, nn.Conv2d, SparseLinear]
    assert seen == [(1, 32), (128, 32)]
    record = record_of(sparse)
    assert record is not None
    assert record["0"].reason.startswith("not measured; 10% of its 16x1 blocks are not zero; up to 80% are expected")
    assert "90% of its 16x1 blocks are not zero, too many to gain anything (up to 80%" in record["2"].reason


def test_only_if_faster_false_takes_every_layer_that_fits() -> None:
    pruned = fc.prune(network(), 0.5, "16x1")

    def never(functions: Mapping[str, Any]) -> dict[str, float]:
        raise AssertionError("measured")

    sparse = fc.convert(pruned, only_if_faster=False, timer=never)
    assert [type(sparse[i]) for i in (0, 2, 4)] == [SparseConv2d, SparseConv2d, SparseLinear]
    assert record_of(sparse)["0"].reason == "not measured; 50% of its 16x1 blocks are not zero"  # type: ignore[index]


def test_targets_and_ignore_leave_masks_alone() -> None:
    pruned = fc.prune(linears(), 0.75, "16x1")
    some = fc.convert(pruned, targets="0", timer=WINS)
    assert isinstance(some[0], SparseLinear)
    assert list(masked(some)) == ["2"]
    assert record_of(some)["2"].reason == "not among the targets; it keeps its mask"  # type: ignore[index]
    rest = fc.convert(some, ignore="re:0", timer=LOSES)  # a finished layer may be named too
    assert isinstance(rest[0], SparseLinear)
    assert not masked(rest)
    record = record_of(rest)
    assert record is not None
    assert (record["0"].action, record["2"].action) == ("sparse", "kept")
    with pytest.raises(ValueError, match=r"convert: targets entry '1' matches no layer that can be converted"):
        fc.convert(pruned, targets="1")


def test_models_without_masks_and_finished_layers_are_left_alone() -> None:
    model = linears()
    same = fc.convert(model)
    assert same is not model
    assert record_of(same) is None
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    assert fc.convert(model, inplace=True) is model
    quantized = fc.quantize(fc.prune(linears(), 0.75, "16x4"), "W8A8-dynamic", targets="0", only_if_faster=False)
    both = fc.convert(quantized, timer=WINS)
    assert [type(both[0]), type(both[2])] == [SparseQuantLinear, SparseLinear]
    record = record_of(both)
    assert record is not None
    assert record.scheme == "W8A8-dynamic + sparse"
    assert (record["0"].action, record["2"].action) == ("quantized", "sparse")
    again = fc.convert(both)
    assert record_of(again) == record
    assert torch.equal(outputs(again, torch.ones(1, 16)), outputs(both, torch.ones(1, 16)))


def test_sparse_models_go_through_files_and_copies(tmp_path: Path) -> None:
    sparse = fc.convert(fc.prune(network(), 0.9, "16x1"), timer=WINS)
    want = outputs(sparse, images())
    fc.save(sparse, tmp_path)
    loaded = fc.load(tmp_path, model=network())
    assert torch.equal(outputs(loaded, images()), want)
    assert record_of(loaded) == record_of(sparse)
    assert torch.equal(outputs(copy.deepcopy(sparse), images()), want)
    assert fc.verify(sparse) == ["0", "2", "4"]


def test_bfloat16_models_take_their_own_blocks() -> None:
    pruned = fc.prune(linears().bfloat16(), 0.75, "16x2")
    sparse = fc.convert(pruned, example_inputs=torch.randn(4, 16).bfloat16(), timer=lambda f: {"dense": 2, "sparse": 1})
    assert [sparse[0].block_size, sparse[2].block_size] == [(16, 2), (16, 2)]
    assert sparse[0].weight.dtype == torch.bfloat16


def test_a_converted_model_can_be_quantized_where_it_is_dense() -> None:
    mixed = fc.convert(fc.prune(linears(), 0.75, "16x4"), targets="0", timer=WINS)
    quantized = fc.quantize(mixed, "W8A8-dynamic", only_if_faster=False)
    assert isinstance(quantized[0], SparseLinear)
    assert isinstance(quantized[2], QuantLinear)
    assert record_of(quantized)["0"].action == "sparse"  # type: ignore[index]


def test_the_real_stopwatch_decides_something() -> None:
    sparse = fc.convert(fc.prune(linears(), 0.75, "16x1"), example_inputs=torch.randn(4, 16))
    record = record_of(sparse)
    assert record is not None
    for decision in record:
        assert decision.action in ("sparse", "kept")
        assert decision.speedup is not None
        assert (decision.action == "sparse") == (decision.speedup > 1)
