"""What this machine's processor can do and which kernels are chosen for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastcompress.ops import native

__all__ = ["CpuInfo", "cpu_info"]

_COLUMNS = (("family", 12), ("isa", 11), ("kernel", 24), ("tile", 16))


@dataclass(frozen=True)
class CpuInfo:
    """The answer of `cpu_info`; printing it gives a table.

    Attributes:
        isa: the chosen instruction set, ``"reference"`` when the native module is missing.
        compiled, supported: instruction sets in this build, and those of them that this processor runs.
        features: CPU feature → present.
        kernels: one entry per kernel: family, isa, kernel, tile, supported, chosen.
        threads: threads that kernels use (torch's own setting).
    """

    isa: str
    compiled: tuple[str, ...]
    supported: tuple[str, ...]
    features: Mapping[str, bool]
    kernels: tuple[Mapping[str, Any], ...]
    threads: int

    def __str__(self) -> str:
        present = " ".join(name for name, has in self.features.items() if has) or "unknown"
        lines = [
            f"instruction set  {self.isa} (built: {', '.join(self.compiled) or 'none'}; runs here: "
            f"{', '.join(self.supported) or 'none'})",
            f"threads          {self.threads}",
            f"features         {present}",
        ]
        for kernel in self.kernels:
            mark = "→" if kernel.get("chosen") else " "
            state = "" if kernel.get("supported") else "  (not supported here)"
            shown = (f"{kernel.get(key, '')!s:<{width}}" for key, width in _COLUMNS)
            lines.append(f"{mark} {' '.join(shown).rstrip()}{state}")
        return "\n".join(lines)


def cpu_info() -> CpuInfo:
    """CPU features, the kernels of this build, and which of them run; ``FASTCOMPRESS_ISA`` forces an instruction set.

    Example:
        >>> fc.cpu_info().isa
        'avx512vnni'
    """
    module = native.module
    if module is None:
        return CpuInfo("reference", (), (), {}, (), torch.get_num_threads())
    return CpuInfo(
        isa=str(module.isa()),
        compiled=tuple(module.isa_compiled()),
        supported=tuple(module.isa_supported()),
        features=dict(module.cpu_features()),
        kernels=tuple(dict(kernel) for kernel in module.kernels()),
        threads=torch.get_num_threads(),
    )
