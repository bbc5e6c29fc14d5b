"""The network's size, shape and arithmetic."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.training.network import DENSE, NetworkConfig, Residual, ResidualCNN, Stage, count_macs, student_of


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_multiply_adds_by_hand() -> None:
    # 28 → 14 (stem) → 14 → 7 → 4 → 2 pixels a side; every convolution is 3×3.
    early = 9 * (1 * 32 * 14**2 + 32 * 48 * 14**2 + 48 * 96 * 7**2 + 96 * 144 * 4**2)
    late = 9 * (144 * 224 * 2**2 + 2 * 224 * 224 * 2**2)
    assert count_macs(ResidualCNN(), (1, 28, 28)) == early + late + 224 * 10
    assert count_macs(ResidualCNN(), (1, 28, 28)) <= 12_000_000


def test_student_has_a_quarter_of_the_parameters() -> None:
    share = parameters(ResidualCNN(student_of())) / parameters(ResidualCNN())
    assert 0.25 <= share < 0.26


def test_widths_suit_every_block() -> None:
    assert all(width % 16 == 0 for width in (DENSE.stem, *(stage.width for stage in DENSE.stages)))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8)])
def test_image_sizes(shape: tuple[int, int, int]) -> None:
    model = ResidualCNN(NetworkConfig(in_channels=shape[0], classes=7)).eval()
    scores = model(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 7)
    assert scores.isfinite().all()


def test_residual_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = Residual(4).eval()
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        inner = functional.relu(block.first.norm(block.first.conv(x)))
        expected = functional.relu(x + block.second.norm(block.second.conv(inner)))
        assert torch.equal(block(x), expected)


def test_configuration_survives_json() -> None:
    config = NetworkConfig(3, 100, 16, (Stage(32, 2), Stage(48, residual=True)))
    assert NetworkConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(TypeError, match="depth"):
        NetworkConfig.from_json({**config.to_json(), "depth": 3})


@pytest.mark.parametrize(
    ("make", "error", "problem"),
    [
        (lambda: Stage(0), ValueError, "Stage: width must be at least 1, got 0"),
        (lambda: Stage(1.5), TypeError, "Stage: width must be a positive integer, got 1.5"),
        (lambda: Stage(16, stride=3), ValueError, "stride must be 1 or 2, got 3"),
        (lambda: Stage(16, residual=1), TypeError, "residual must be True or False, got 1"),
        (lambda: NetworkConfig(stages=()), ValueError, "stages is empty"),
        (lambda: NetworkConfig(stages=[Stage(16)]), TypeError, "stages must be a tuple of Stage"),
        (lambda: NetworkConfig(in_channels=True), TypeError, "in_channels must be a positive integer"),
        (lambda: ResidualCNN({"stem": 3}), TypeError, "config must be a NetworkConfig, got dict"),
        (lambda: student_of(dataclasses.replace(DENSE, stem=31)), ValueError, "width 31 cannot be halved"),
    ],
)
def test_wrong_sizes(make: object, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        make()  # type: ignore[operator]


def test_counting_leaves_the_model_as_it_was() -> None:
    model = ResidualCNN().train()
    model.stem.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (1, 28, 28))
    assert model.training
    assert not model.stem.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_normalizes_in_float32_under_autocast_and_runs_in_bfloat16() -> None:
    model, images = ResidualCNN().eval(), torch.randn(2, 1, 28, 28)
    seen: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert set(seen) == {torch.float32}
    seen.clear()
    with torch.no_grad():
        scores = model.to(torch.bfloat16)(images.bfloat16())
    assert scores.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16}
