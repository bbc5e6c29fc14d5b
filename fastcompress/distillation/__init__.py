"""Knowledge distillation: losses between a teacher and a student, for any training loop."""

from fastcompress.distillation.attention import AttentionTransferLoss
from fastcompress.distillation.cache import CacheStats, TeacherCache
from fastcompress.distillation.distiller import Distiller
from fastcompress.distillation.feature import FeatureLoss
from fastcompress.distillation.logits import LogitsLoss
from fastcompress.distillation.loss import DistillationLoss
from fastcompress.distillation.outputs import logits_of
from fastcompress.distillation.relational import RelationalLoss
from fastcompress.distillation.resolve import make_losses
from fastcompress.distillation.self_distillation import SelfDistillation
from fastcompress.distillation.taps import Taps

__all__ = [
    "AttentionTransferLoss",
    "CacheStats",
    "DistillationLoss",
    "Distiller",
    "FeatureLoss",
    "LogitsLoss",
    "RelationalLoss",
    "SelfDistillation",
    "Taps",
    "TeacherCache",
    "logits_of",
    "make_losses",
]
