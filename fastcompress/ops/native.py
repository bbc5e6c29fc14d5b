"""The native module: imported once, or one warning that says what is missing."""

import importlib
import os
import warnings
from types import ModuleType

import torch  # noqa: F401  # must be loaded first: the extension resolves its symbols against libtorch

__all__ = ["available", "module", "require"]


def _load() -> ModuleType | None:
    if os.environ.get("FASTCOMPRESS_DISABLE_NATIVE") == "1":
        return None  # asked for: nothing to warn about
    try:
        return importlib.import_module("fastcompress._C")
    except ImportError as error:
        warnings.warn(
            f"fastcompress: the native kernels (fastcompress._C) are not available: {error}. Layers run on the slow "
            "reference path. Rebuild with a C++ compiler installed (`make build`, or `pip install --no-cache-dir "
            "--force-reinstall fastcompress`); FASTCOMPRESS_DISABLE_NATIVE=1 chooses the reference path silently.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


#: The extension module, or ``None``.
module: ModuleType | None = _load()

#: Whether the C++ kernels are loaded.
available: bool = module is not None


def require(what: str) -> ModuleType:
    """Return the native module.

    Raises:
        RuntimeError: it is not loaded; `what` names the function that needs it.
    """
    if module is None:
        raise RuntimeError(
            f"{what} needs the native module fastcompress._C, which is not loaded; build it with `make build` "
            "(and unset FASTCOMPRESS_DISABLE_NATIVE)"
        )
    return module
