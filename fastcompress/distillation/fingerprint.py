"""What a teacher's answer depends on besides the batch, as one hash."""

from __future__ import annotations

import hashlib
import re
import weakref
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fastcompress.models.calibrate import ForwardFn

from .samples import KEY_BYTES, tensor_bytes

__all__ = ["Fingerprint"]

_ADDRESS = re.compile(r"0x[0-9a-f]+")  # differs from run to run in a repr, and says nothing


class Fingerprint:
    """The hash of a teacher's weights and layers; weights are read again only after somebody has changed them."""

    def __init__(self) -> None:
        # Weak references and not ids: another teacher's tensors may lie where a deleted one's were.
        self._seen: list[tuple[weakref.ref[Tensor], int, int]] = []
        self._weights = b""

    def of(self, model: nn.Module, names: Iterable[str], device: torch.device, forward_fn: ForwardFn | None) -> str:
        """The fingerprint of ``model`` for these outputs.

        Weights and buffers, classes and settings of all modules, the outputs' names, the kind of device, autocast,
        torch's version and the name of ``forward_fn`` count; Python code does not.
        """
        tensors = _tensors(model)
        if not self._unchanged(list(tensors.values())):
            self._weights = _weights(tensors)
            self._seen = [(weakref.ref(t), t.data_ptr(), _version(t)) for t in tensors.values()]
        digest = hashlib.blake2b(self._weights, digest_size=KEY_BYTES)
        for name, module in model.named_modules():
            settings = _ADDRESS.sub("0x", module.extra_repr())
            digest.update(f"{name!r}:{type(module).__module__}.{type(module).__qualname__}({settings});".encode())
        for name in sorted(names):
            digest.update(f"{name!r};".encode())
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        function = None if forward_fn is None else getattr(forward_fn, "__qualname__", type(forward_fn).__qualname__)
        digest.update(f"{device.type} {autocast} {torch.__version__} {function}".encode())
        return digest.hexdigest()

    def _unchanged(self, tensors: list[Tensor]) -> bool:
        return len(tensors) == len(self._seen) and all(
            reference() is tensor and address == tensor.data_ptr() and version == _version(tensor)
            for tensor, (reference, address, version) in zip(tensors, self._seen, strict=True)
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _weights(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name!r}:{tensor.dtype}{list(tensor.shape)};".encode())
        digest.update(tensor_bytes(tensor))
    return digest.digest()
