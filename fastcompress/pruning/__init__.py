"""Pruning algorithms: pure torch, no kernels."""

from .allocate import allocate
from .channels import prune_channels
from .config import PruneConfig
from .criteria import CRITERIA, magnitude_scores, random_scores, taylor_scores, wanda_scores
from .mask import Mask, apply_mask, mask_of, masked, permutation_of, remove_mask, sparsity_of
from .matrix import as_matrix, from_matrix
from .patterns import Pattern, parse_pattern
from .permute import Permutation, permutation, permuted, restored
from .prune import prune
from .record import PruneDecision, PruneRecord, pruning_of
from .selection import mask_from_scores
from .sensitivity import SensitivityCurves, SensitivityPoint, sensitivity
from .sparsegpt import Hessian, sparsegpt

__all__ = [
    "CRITERIA",
    "Hessian",
    "Mask",
    "Pattern",
    "Permutation",
    "PruneConfig",
    "PruneDecision",
    "PruneRecord",
    "SensitivityCurves",
    "SensitivityPoint",
    "allocate",
    "apply_mask",
    "as_matrix",
    "from_matrix",
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
    "remove_mask",
    "restored",
    "sensitivity",
    "sparsegpt",
    "sparsity_of",
    "taylor_scores",
    "wanda_scores",
]
