"""Exception types that are fastcompress' own; everything else is ``TypeError``, ``ValueError`` or ``RuntimeError``."""

__all__ = ["CheckpointError", "PackedBlobError", "TrainingDiverged"]


class CheckpointError(RuntimeError):
    """A file could not be loaded or saved; the message names the file and the tensor. Nothing was changed."""


class PackedBlobError(RuntimeError):
    """A packed weight blob is corrupt, or was made for another ISA or layout version; the message says the remedy."""


class TrainingDiverged(RuntimeError):
    """The loss of a training run is NaN or infinite; the message names the step and the last good checkpoint."""
