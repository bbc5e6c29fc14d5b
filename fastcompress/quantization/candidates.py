"""The layers that quantization knows, and those it must report because it does not."""

from __future__ import annotations

from torch import nn

from fastcompress.models.adapters import is_adaptable
from fastcompress.models.targets import Candidate, module_names

__all__ = ["find_candidates", "unsupported_layers", "unsupported_reason"]

#: Layers with weights for which no int8 kernel exists; they are reported, never silently left out.
_UNSUPPORTED: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Bilinear,
    nn.MultiheadAttention,
)


def _is_candidate(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d)) or is_adaptable(module)


def find_candidates(model: nn.Module) -> list[Candidate]:
    """Every module that could be quantized, shared ones once, in the order of ``named_modules``."""
    return [Candidate(names, module) for module, names in module_names(model).items() if _is_candidate(module)]


def unsupported_layers(model: nn.Module) -> list[Candidate]:
    """Layers with weights that no int8 kernel exists for."""
    return [
        Candidate(names, module)
        for module, names in module_names(model).items()
        if isinstance(module, _UNSUPPORTED) and not _is_candidate(module)
    ]


def unsupported_reason(module: nn.Module) -> str:
    """Why a layer among `unsupported_layers` stays float."""
    if isinstance(module, nn.MultiheadAttention):
        return (
            "its input projections (in_proj) are parameters of the attention itself, no linear layer: they stay float"
        )
    return f"there is no int8 kernel for {type(module).__name__}"
