"""What a result depends on: processor, threads, versions, commit, date."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from fastcompress.ops import native

__all__ = ["cpu_name", "describe"]

REPOSITORY = Path(__file__).resolve().parents[2]


def cpu_name() -> str:
    """Return the processor's own name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git(*arguments: str) -> str:
    """Return what git prints in this repository, or the empty string outside one."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def version(package: str) -> str:
    """Return an installed package's version, or ``not installed``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def describe() -> dict[str, object]:
    """Return the machine, the versions and the commit as JSON-ready values."""
    kernels: dict[str, object] = {"isa": "reference", "isa_supported": []}
    if native.module is not None:
        kernels = {"isa": native.module.isa(), "isa_supported": list(native.module.isa_supported())}
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "transformers": version("transformers"),
        "fastcompress": version("fastcompress"),
        "commit": git("rev-parse", "HEAD") or "no commit",
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no", ":!benchmarks/results")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **kernels,
    }
