"""What pruning and quantization share about models: selecting layers, and running calibration data through them."""

from .calibrate import ForwardFn, as_batches, evaluating, replayable, run_batch, run_batches, track
from .copying import copied
from .targets import Candidate, Target, module_names, target_tuple, tied_groups, unwanted

__all__ = [
    "Candidate",
    "ForwardFn",
    "Target",
    "as_batches",
    "copied",
    "evaluating",
    "module_names",
    "replayable",
    "run_batch",
    "run_batches",
    "target_tuple",
    "tied_groups",
    "track",
    "unwanted",
]
