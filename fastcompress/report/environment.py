"""What a measurement must say about the place it was taken: CPU, threads, versions, commit, instruction set."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch

from fastcompress.ops import native
from fastcompress.version import __version__

__all__ = ["cpu_model", "environment", "git_commit", "isa_name", "library_version"]


def library_version() -> str:
    """The version of fastcompress."""
    return __version__


@functools.cache
def cpu_model() -> str:
    """The processor's marketing name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that this package lies in (``+dirty`` when files changed); None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def isa_name() -> str:
    """The instruction set whose kernels run; ``"reference"`` when the native module is not built."""
    return str(native.module.isa()) if native.module is not None else "reference"


def environment() -> dict[str, Any]:
    """Everything a result file records about its machine, ready for JSON.

    Example:
        >>> sorted(environment())[:3]
        ['commit', 'cpu', 'cpus_available']
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": cpu_model(),
        "cpus_available": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": isa_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "fastcompress": library_version(),
        "commit": git_commit(),
    }
