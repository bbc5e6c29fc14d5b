"""`PruneConfig` refuses every wrong value by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from fastcompress.pruning import PruneConfig


def test_defaults_and_json() -> None:
    config = PruneConfig({nn.Linear: 0.5, "head": 0}, "4x4", targets="body", ignore=nn.Conv2d)
    assert config.targets == ("body",)
    assert config.sparsity == {nn.Linear: 0.5, "head": 0.0}
    assert json.loads(json.dumps(config.to_json())) == {
        "sparsity": {"torch.nn.modules.linear:Linear": 0.5, "head": 0.0},
        "pattern": "4x4",
        "criterion": "magnitude",
        "scope": "local",
        "targets": ["body"],
        "ignore": ["torch.nn.modules.conv:Conv2d"],
        "seed": 0,
        "permute": False,
    }


@pytest.mark.parametrize(
    ("pattern", "permute", "dims"),
    [
        ("16x4", True, (True, False)),
        ("16x1", True, (False, True)),
        ("16x4", "outputs", (False, True)),
        ("16x4", "both", (True, True)),
        ("16x4", False, (False, False)),
    ],
)
def test_what_is_permuted(pattern: str, permute: bool | str, dims: tuple[bool, bool]) -> None:
    assert PruneConfig(0.5, pattern, permute=permute).permuted_dims == dims


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (
            {"sparsity": 1.0},
            ValueError,
            r"prune: sparsity must lie in \[0, 1\) \(the fraction that is pruned\), got 1.0",
        ),
        ({"sparsity": -0.1}, ValueError, r"prune: sparsity must lie in \[0, 1\) .*, got -0.1"),
        ({"sparsity": float("nan")}, ValueError, r"prune: sparsity must lie in \[0, 1\) .*, got nan"),
        ({"sparsity": True}, TypeError, r"prune: sparsity must be a number in \[0, 1\), got True"),
        ({"sparsity": "0.5"}, TypeError, r"prune: sparsity must be a number in \[0, 1\), got '0.5'"),
        ({"sparsity": {}}, ValueError, "prune: sparsity is an empty mapping"),
        ({"sparsity": {"fc": 2}}, ValueError, r"prune: sparsity\['fc'\] must lie in \[0, 1\) .*, got 2.0"),
        ({"sparsity": {3: 0.5}}, TypeError, "prune: sparsity holds 3; allowed are module names"),
        ({"pattern": "16by4"}, ValueError, r"prune: pattern '16by4' is unknown; allowed are .* did you mean '16x4'"),
        ({"pattern": None}, TypeError, "prune: pattern must be a string"),
        (
            {"pattern": "2:4", "sparsity": 0.9},
            ValueError,
            "prune: pattern '2:4' always has sparsity 0.5, sparsity is 0.9",
        ),
        ({"criterion": "magnitud"}, ValueError, "prune: criterion 'magnitud' is unknown; .* did you mean 'magnitude'"),
        (
            {"scope": "globl"},
            ValueError,
            "prune: scope 'globl' is unknown; valid are 'local', 'global'; did you mean 'gl",
        ),
        ({"scope": None}, TypeError, "prune: scope must be one of 'local', 'global', got None"),
        ({"scope": "global", "criterion": "sparsegpt"}, ValueError, "'sparsegpt' chooses masks layer by layer"),
        ({"scope": "global", "pattern": "2:4"}, ValueError, "pattern '2:4' has the same sparsity everywhere"),
        ({"scope": "global", "sparsity": {"a": 0.5}}, ValueError, "scope='global' takes one sparsity for all layers"),
        ({"targets": ()}, ValueError, "prune: targets is empty; use None for all layers"),
        ({"targets": 3}, TypeError, "prune: targets must hold module names, .*, got 3"),
        ({"ignore": ("re:(",)}, ValueError, r"prune: ignore: 're:\(' is no regular expression"),
        ({"seed": 1.5}, TypeError, "prune: seed must be an int, got 1.5"),
        ({"seed": True}, TypeError, "prune: seed must be an int, got True"),
        ({"seed": 2**64}, ValueError, "prune: seed must fit into 64 bits, got 18446744073709551616"),
        ({"sparsity": {"fc": float("nan")}}, ValueError, r"prune: sparsity\['fc'\] must lie in \[0, 1\) .*, got nan"),
        ({"sparsity": float("inf")}, ValueError, r"prune: sparsity must lie in \[0, 1\) .*, got inf"),
        (
            {"permute": "rows"},
            ValueError,
            "prune: permute must be True, False, 'inputs', 'outputs', 'both'; got 'rows'",
        ),
        ({"permute": True}, ValueError, "permute=True needs a block pattern such as '16x4', got 'unstructured'"),
        ({"permute": True, "pattern": "4x4", "scope": "global"}, ValueError, "each layer's own sparsity, scope is 'gl"),
        (
            {"permute": "inputs", "pattern": "4x1"},
            ValueError,
            "permute='inputs' has no effect on the inputs of pattern",
        ),
        ({"permute": True, "pattern": "1x1"}, ValueError, "permute=True has no effect on the outputs of pattern '1x1'"),
    ],
)
def test_wrong_values(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PruneConfig(**({"sparsity": 0.5} | kwargs))


def test_a_sparsity_near_the_one_of_the_pattern_is_meant() -> None:
    assert PruneConfig(0.67, "1:3").sparsity == 0.67
    assert PruneConfig(0, "2:4").sparsity == 0.0
