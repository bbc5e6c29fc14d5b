"""`PrunerConfig` refuses every wrong value by name, and knows when what is due."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from torch import nn

from fastcompress.pruning import PrunerConfig


def test_json() -> None:
    config = PrunerConfig({nn.Linear: 0.5}, "4x4", end_step=10, targets="body", ignore=nn.Conv2d)
    plain = json.loads(json.dumps(config.to_json()))
    assert plain["sparsity"] == {"torch.nn.modules.linear:Linear": 0.5}
    assert plain["targets"] == ["body"]
    assert plain["ignore"] == ["torch.nn.modules.conv:Conv2d"]
    assert config.replace(frequency=5) == PrunerConfig(
        {nn.Linear: 0.5}, "4x4", end_step=10, frequency=5, targets="body", ignore=nn.Conv2d
    )


@pytest.mark.parametrize(
    ("kwargs", "due"),
    [
        ({"schedule": "cubic", "start_step": 3, "end_step": 14, "frequency": 4}, [3, 7, 11, 14]),
        ({"schedule": "linear", "start_step": 3, "end_step": 3, "frequency": 4}, [3]),
        ({"schedule": "constant", "start_step": 2, "end_step": 6, "frequency": 2}, [2, 4, 6]),
        ({"schedule": "constant", "start_step": 2}, [2]),
        ({"schedule": "one-shot", "start_step": 5}, [5]),
        ({"schedule": "iterative", "start_step": 4, "end_step": 12, "rounds": 3, "frequency": 2}, [4, 8, 12]),
        ({"schedule": "iterative", "start_step": 4, "end_step": 12}, [4]),
    ],
)
def test_when_masks_change(kwargs: dict[str, Any], due: list[int]) -> None:
    config = PrunerConfig(0.5, **kwargs)
    assert [step for step in range(30) if config.is_due(step)] == due
    assert config.last_step == due[-1]
    assert config.sparsity_at(due[-1]) == 0.5
    assert config.sparsity_at(due[0] - 1) == 0.0


def test_regrowth_decays_by_a_cosine() -> None:
    config = PrunerConfig(0.5, schedule="constant", start_step=10, end_step=30, regrow="rigl", regrow_fraction=0.4)
    for step in range(11, 30):
        assert math.isclose(config.regrow_share(step), 0.2 * (1 + math.cos(math.pi * (step - 10) / 20)))
    assert [config.regrow_share(step) for step in (0, 10, 30, 31)] == [0.0] * 4
    assert config.replace(regrow_decay="none").regrow_share(25) == 0.4
    assert config.replace(regrow=None).regrow_share(20) == 0.0


CUBIC = {"end_step": 10}
ITERATIVE = {"schedule": "iterative", "start_step": 4, "end_step": 10}
CONSTANT = {"schedule": "constant"}


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"PrunerConfig: sparsity must lie in \[0, 1\)"),
        ({"sparsity": {}}, ValueError, "PrunerConfig: sparsity is an empty mapping"),
        ({"pattern": "16by4"}, ValueError, "PrunerConfig: pattern '16by4' is unknown"),
        ({"pattern": "2:4", "sparsity": 0.75}, ValueError, "PrunerConfig: pattern '2:4' always has sparsity 0.5"),
        ({"criterion": "movment"}, ValueError, "PrunerConfig: criterion 'movment' is unknown.*mean 'movement'"),
        ({"criterion": "sparsegpt"}, ValueError, "PrunerConfig: criterion 'sparsegpt' is unknown"),
        ({"scope": "globl"}, ValueError, "PrunerConfig: scope 'globl' is unknown.*did you mean 'global'"),
        ({"schedule": "cubik"}, ValueError, "PrunerConfig: schedule 'cubik' is unknown.*did you mean 'cubic'"),
        ({"schedule": None}, TypeError, "PrunerConfig: schedule must be one of"),
        ({"targets": ()}, ValueError, "PrunerConfig: targets is empty"),
        ({"seed": 1.5}, TypeError, "PrunerConfig: seed must be an int, got 1.5"),
        ({"start_step": -1}, ValueError, "PrunerConfig: start_step must be at least 0, got -1"),
        ({"start_step": 1.0}, TypeError, "PrunerConfig: start_step must be an int, got 1.0"),
        ({"frequency": 0}, ValueError, "PrunerConfig: frequency must be at least 1, got 0"),
        ({"frequency": True}, TypeError, "PrunerConfig: frequency must be an int, got True"),
        ({"start_step": 11}, ValueError, "PrunerConfig: end_step must not be before start_step=11, got 10"),
        ({"end_step": None}, ValueError, "PrunerConfig: schedule 'cubic' needs end_step"),
        ({"schedule": "one-shot"}, ValueError, "schedule 'one-shot' prunes at start_step=0 only, end_step is 10"),
        ({"initial_sparsity": 0.6}, ValueError, "initial_sparsity must not exceed the final sparsity 0.5, got 0.6"),
        (
            {"initial_sparsity": 0.6, "sparsity": {"a": 0.9, "b": 0.5, "c": 0}},
            ValueError,
            "initial_sparsity must not exceed the final sparsity 0.5, got 0.6",
        ),
        (
            {"initial_sparsity": 0.2, "criterion": "movement"},
            ValueError,
            "criterion 'movement' needs gradients.*sparsity 0.2 is asked for at step 0; use start_step=1",
        ),
        (
            CONSTANT | {"criterion": "taylor"},
            ValueError,
            "criterion 'taylor' needs gradients.*sparsity 0.5 is asked for at step 0",
        ),
        ({"rounds": 2}, ValueError, "rounds belongs to schedule 'iterative', got rounds=2 with 'cubic'"),
        (ITERATIVE | {"rounds": 8}, ValueError, "rounds=8 need as many steps from start_step=4 to end_step.* is 10"),
        ({"rewind_step": 0}, ValueError, "rewind_step belongs to schedule 'iterative', got 'cubic'"),
        (ITERATIVE | {"rewind_step": 5}, ValueError, "rewind_step must not be after start_step=4, got 5"),
        (ITERATIVE | {"rewind_step": -1}, ValueError, "rewind_step must be at least 0"),
        (
            CONSTANT | {"regrow": "rigel"},
            ValueError,
            "regrow 'rigel' is unknown; valid are 'rigl'; did you mean 'rigl'",
        ),
        (CONSTANT | {"regrow": "rigl", "end_step": None}, ValueError, "regrow needs end_step after start_step=0"),
        (ITERATIVE | {"regrow": "rigl"}, ValueError, "schedule 'iterative' has none; use 'constant'"),
        ({"regrow_fraction": 0.0}, ValueError, r"regrow_fraction must lie in \(0, 1\], got 0.0"),
        ({"regrow_decay": "linear"}, ValueError, "regrow_decay 'linear' is unknown; valid are 'cosine', 'none'"),
        ({"regrow": "rigl", "pattern": "channel"}, ValueError, "channels do not regrow"),
        ({"scope": "global", "pattern": "2:4"}, ValueError, "pattern '2:4' goes with scope='local' only"),
        ({"scope": "global", "sparsity": {"a": 0.5}}, ValueError, "scope='global' takes one sparsity for all layers"),
        ({"round_to": 0}, ValueError, "round_to must be at least 1, got 0"),
    ],
)
def test_wrong_values(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PrunerConfig(**({"sparsity": 0.5} | CUBIC | kwargs))


def test_one_layers_sparsity_has_to_be_said() -> None:
    config = PrunerConfig({"a": 0.5}, end_step=10)
    assert config.sparsity_at(10, 0.5) == 0.5
    with pytest.raises(ValueError, match=r"sparsity_at: sparsity is a mapping; pass final"):
        config.sparsity_at(10)
