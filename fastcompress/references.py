"""References to Python objects in text, as the command line and recipe files write them: ``module:callable``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

__all__ = ["call_reference", "find_reference", "is_reference"]


def is_reference(text: str) -> bool:
    """Whether the text has the form ``module:name`` (the module need not exist)."""
    module_name, separator, path = text.partition(":")
    parts = [*module_name.split("."), *path.split(".")]
    return bool(separator) and all(part.isidentifier() for part in parts)


def find_reference(reference: str) -> Any:
    """Import ``module:callable`` and return the callable; modules are looked up from the current directory too.

    Raises:
        ValueError: not of this form, or no such name in the module. TypeError: it cannot be called. ImportError: no
            such module. Whatever else its import raises.
    """
    module_name, separator, path = reference.partition(":")
    if not separator or not module_name or not path:
        raise ValueError(f"{reference!r} is not of the form module:callable, for example mypackage.models:resnet")
    if "" not in sys.path:
        sys.path.insert(0, "")  # an installed script does not look into the current directory by itself
    target: Any = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(target, part):
            raise ValueError(f"{reference!r}: {module_name} has no attribute {path!r}")
        target = getattr(target, part)
    if not callable(target):
        raise TypeError(f"{reference!r} is a {type(target).__name__}, not a callable that takes no arguments")
    return target


def call_reference(reference: str) -> Any:
    """Import ``module:callable`` and call it without arguments; raises what `find_reference` and the call raise."""
    return find_reference(reference)()
