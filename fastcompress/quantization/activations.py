"""Which activation of the kernels' epilogue a module computes, found out by trying it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ACTIVATION_FUNCTIONS", "epilogue_activation"]

#: Epilogue activation → the float function it computes.
ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}

# gelu and its tanh form differ by up to 5e-4, all others by far more; implementations of one function by some ulps.
_ATOL = 1e-5
_RTOL = 1e-5


def _probe() -> Tensor:
    """Values that tell all activations (and their clipped, scaled or shifted relatives) apart, as a [64, 66] tensor."""
    fine = torch.linspace(-12.0, 12.0, 4097)
    coarse = torch.tensor([-1e4, -300.0, -90.0, -31.0, -20.0, 20.0, 31.0, 90.0, 300.0, 1e4])
    values = torch.cat([fine, coarse])
    return F.pad(values, (0, 64 * 66 - values.numel())).reshape(64, 66)


def epilogue_activation(module: nn.Module) -> str | None:
    """The epilogue activation that ``module`` computes, or None.

    Decided by behaviour, so that wrappers and home-made versions are found too: a module without parameters, buffers
    and children is run (a copy of it, on made-up values) and compared with each activation.

    Example:
        >>> epilogue_activation(nn.Hardtanh(0.0, 6.0))
        'relu6'
    """
    if isinstance(module, torch.jit.ScriptModule) or type(module) in (nn.Identity, nn.Dropout):
        return None
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        return None
    if next(module.children(), None) is not None or not _takes_one_tensor(module):
        return None
    x = _probe()
    try:
        with torch.no_grad():
            y = copy.deepcopy(module).eval()(x.clone())
    except Exception:  # whatever a foreign module raises on made-up values, it is no elementwise activation
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        return None
    for name, function in ACTIVATION_FUNCTIONS.items():
        if torch.allclose(y, function(x), rtol=_RTOL, atol=_ATOL):
            return name
    return None


def _takes_one_tensor(module: nn.Module) -> bool:
    try:
        parameters = inspect.signature(type(module).forward).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind in positional]
    return len(required) == 2  # self and the input
