"""What the file format knows about one class of module: how it is described, checked and rebuilt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fastcompress.formats.fields import Fields

__all__ = ["LayerCodec"]


class LayerCodec(ABC):
    """One class of the allow-list; an instance, made by `parse`, is the checked configuration of one module."""

    #: The class this codec saves and rebuilds; exact type, subclasses are other classes.
    module_class: ClassVar[type[nn.Module]]
    #: True when `build` takes all of the module's tensors; False when they are assigned afterwards like any other's.
    owns_tensors: ClassVar[bool]

    @classmethod
    @abstractmethod
    def describe(cls, module: nn.Module) -> dict[str, Any]:
        """The JSON configuration of ``module``."""

    @classmethod
    @abstractmethod
    def parse(cls, fields: Fields) -> LayerCodec:
        """Check a configuration from a file; ``ValueError`` names the field."""

    @abstractmethod
    def tensors(self) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        """The tensors the module must have in the file: name → (dtype name or None for any float, shape)."""

    @abstractmethod
    def check_target(self, module: nn.Module) -> None:
        """Check that ``module``, from the user's model, has this geometry; ``ValueError`` says what differs."""

    @abstractmethod
    def keeps(self, module: nn.Module) -> bool:
        """Whether ``module`` needs no replacement."""

    @abstractmethod
    def build(self, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
        """Make the module; ``like`` is the one it replaces (device, training mode)."""
