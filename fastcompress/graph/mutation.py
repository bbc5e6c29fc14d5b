"""Which steps of a graph change a tensor in place: around those, nothing may be moved."""

from __future__ import annotations

import operator
from collections.abc import Callable

from torch import fx, nn

__all__ = ["AUGMENTED", "changes_in_place", "changes_others"]

#: Names of the operators like ``+=``, in Python's module ``operator``.
AUGMENTED = (
    *("iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow"),
    *("iand", "ior", "ixor", "ilshift", "irshift"),
)
_OPERATORS = {operator.setitem, *(getattr(operator, name) for name in AUGMENTED)}


def changes_in_place(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a step writes into its first input, or into ``out``."""
    if node.op == "call_module":
        module: nn.Module = model.get_submodule(str(node.target))
        return bool(getattr(module, "inplace", False))
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in _OPERATORS or (name.endswith("_") and not name.endswith("__"))
    return False


def changes_others(model: fx.GraphModule, is_fresh: Callable[[fx.Node], bool]) -> bool:
    """Whether a step may change a tensor that another step reads.

    Args:
        is_fresh: whether a node gives a tensor of its own, no view of another. Writing into one that nobody else reads
            is the same as making a new one.
    """
    for node in model.graph.nodes:
        if not changes_in_place(model, node):
            continue
        written = node.args[0] if node.args else None
        alone = isinstance(written, fx.Node) and len(written.users) == 1 and is_fresh(written)
        if not alone or "out" in node.kwargs or node.target is operator.setitem:
            return True
    return False
