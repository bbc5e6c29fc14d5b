"""Pruning algorithms: pure torch, no kernels."""

from .allocate import allocate
from .channels import prune_channels
from .config import PruneConfig
from .criteria import CRITERIA, magnitude_scores, random_scores, taylor_scores, wanda_scores
from .erdos_renyi import erdos_renyi
from .mask import Mask, apply_mask, mask_of, masked, permutation_of, remove_mask, sparsity_of
from .matrix import as_matrix, from_matrix
from .patterns import Pattern, parse_pattern
from .permute import Permutation, permutation, permuted, restored
from .prune import prune
from .pruner import Pruner
from .pruner_config import TRAINING_CRITERIA, PrunerConfig
from .record import PruneDecision, PruneRecord, pruning_of
from .relax import relax_mask
from .schedules import (
    SCHEDULES,
    constant_sparsity,
    cubic_sparsity,
    iterative_sparsity,
    linear_sparsity,
    round_steps,
)
from .selection import mask_from_scores
from .sensitivity import SensitivityCurves, SensitivityPoint, sensitivity
from .sparsegpt import Hessian, sparsegpt

__all__ = [
    "CRITERIA",
    "SCHEDULES",
    "TRAINING_CRITERIA",
    "Hessian",
    "Mask",
    "Pattern",
    "Permutation",
    "PruneConfig",
    "PruneDecision",
    "PruneRecord",
    "Pruner",
    "PrunerConfig",
    "SensitivityCurves",
    "SensitivityPoint",
    "allocate",
    "apply_mask",
    "as_matrix",
    "constant_sparsity",
    "cubic_sparsity",
    "erdos_renyi",
    "from_matrix",
    "iterative_sparsity",
    "linear_sparsity",
    "magnitude_scores",
    "mask_from_scores",
    "mask_of",
    "masked",
    "parse_pattern",
    "permutation",
    "permutation_of",
    "permuted",
    "prune",
    "prune_channels",
    "pruning_of",
    "random_scores",
    "relax_mask",
    "remove_mask",
    "restored",
    "round_steps",
    "sensitivity",
    "sparsegpt",
    "sparsity_of",
    "taylor_scores",
    "wanda_scores",
]
