"""fastcompress as a quantizer of transformers: `FastCompressConfig` and the loading and saving behind it.

Importing this module registers both, so that ``AutoModel.from_pretrained`` knows directories that were saved with them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastcompress.api import quantize
from fastcompress.config import QuantConfig
from fastcompress.errors import CheckpointError
from fastcompress.formats.checkpoints import read_checkpoint
from fastcompress.formats.checkpoints.layout import layer_tensors, settings_of
from fastcompress.formats.checkpoints.placing import place_layers
from fastcompress.integrations.hf_model import (
    Waiting,
    forget_replaced_ties,
    named_as_in,
    put,
    quantized_names,
    stored_layers,
)
from fastcompress.integrations.hf_ties import keep_ties

try:
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise ImportError(
        "fastcompress.integrations.hf_quantizer needs transformers: pip install 'fastcompress[transformers]'"
    ) from error

__all__ = ["FastCompressConfig", "FastCompressQuantizer"]

_METHOD = "fastcompress"
#: Settings in ``config.json`` that say how the tensors are to be read; made anew at each save.
_STORED = ("format", "quantization_status", "config_groups", "ignore", "kv_cache_scheme")


@register_quantization_config(_METHOD)
class FastCompressConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not checked
    """How ``from_pretrained`` quantizes a float checkpoint, and what a saved directory says about itself.

    Args:
        scheme: one that needs no calibration data: ``"W4A16"``, ``"W4A8"``, ``"W8A16"``, ``"W8A8-dynamic"``; None for
            models that are quantized already.
        options: further fields of `fastcompress.QuantConfig`: group_size, algorithm, targets, ignore and so on. Every
            layer that can be is quantized, measured faster or not, unless ``only_if_faster=True``.

    Raises:
        TypeError, ValueError: a wrong scheme or option.

    Example:
        >>> config = FastCompressConfig("W4A16", group_size=64, ignore=["lm_head"])
        >>> model = AutoModelForCausalLM.from_pretrained("model", quantization_config=config)
        >>> model.save_pretrained("out")
        >>> again = AutoModelForCausalLM.from_pretrained("out")
    """

    def __init__(self, scheme: str | None = "W4A16", *, stored: dict[str, Any] | None = None, **options: Any) -> None:
        self.quant_method = _METHOD
        self.scheme, self.stored = scheme, stored
        self.options: dict[str, Any] = {}
        if scheme is None:
            if options:
                raise ValueError(f"FastCompressConfig: {min(options)!r} goes with a scheme, scheme is None")
            return
        options = {"only_if_faster": False, **options}
        if isinstance(options.get("ignore"), str):
            options["ignore"] = [options["ignore"]]
        config = QuantConfig(scheme, **options)
        if config.input_mode == "static":
            raise ValueError(
                f"FastCompressConfig: scheme {scheme!r} needs calibration data; load the float model and call "
                "fastcompress.quantize"
            )
        self.options = options

    @property
    def config(self) -> QuantConfig:
        """The configuration of `fastcompress.quantize`. Raises ValueError if there is no scheme."""
        if self.scheme is None:
            raise ValueError("FastCompressConfig: scheme is None, and the checkpoint is not quantized; name a scheme")
        return QuantConfig(self.scheme, **self.options)

    @staticmethod
    def attach(model: Any) -> Any:
        """Make ``save_pretrained`` of a transformers model with our layers write a directory that loads again.

        `fastcompress.load_pretrained` and ``from_pretrained`` have done it; call it after `fastcompress.quantize`.

        Returns:
            The model itself.

        Example:
            >>> FastCompressConfig.attach(fc.quantize(model, "W8A8-dynamic")).save_pretrained("out")
        """
        config = FastCompressConfig(None)
        model.config.quantization_config = config
        model.hf_quantizer = FastCompressQuantizer(config, pre_quantized=True)
        forget_replaced_ties(model)
        return model

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read what `to_dict` wrote."""
        if not isinstance(config_dict, dict) or not isinstance(config_dict.get("options", {}), dict):
            raise ValueError("FastCompressConfig: quantization_config: must be a JSON object, and options in it")
        stored = {key: config_dict[key] for key in _STORED if key in config_dict}
        try:
            made = cls(config_dict.get("scheme"), stored=stored or None, **config_dict.get("options", {}))
        except TypeError as error:
            raise ValueError(f"FastCompressConfig: quantization_config: options: {error}") from None
        return (made, kwargs) if return_unused_kwargs else made

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON; classes among targets become their names."""
        body: dict[str, Any] = {"quant_method": _METHOD, **(self.stored or {})}
        if self.scheme is not None:
            values = self.config.to_json()
            body |= {"scheme": self.scheme, "options": {key: values[key] for key in self.options}}
        return body


@contextlib.contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """transformers builds models on the meta device with another default dtype; finished layers are real."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@register_quantizer(_METHOD)
class FastCompressQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads, quantizes on load, and saves; transformers makes it from a `FastCompressConfig`."""

    requires_calibration = False
    quantization_config: FastCompressConfig

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot work: layers spread over devices, or on the disk."""
        if isinstance(device_map, dict) and len(set(map(str, device_map.values()))) > 1:
            raise ValueError("FastCompressConfig: device_map must name one device, packed layers stay together")

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, dtype: Any = None, **kwargs: Any
    ) -> None:
        if not self.pre_quantized:
            return
        if not checkpoint_files:
            raise ValueError("FastCompressConfig: a quantized model is loaded from safetensors files, there are none")
        directory = Path(checkpoint_files[0]).parent
        with _ordinary_tensors():
            layers = named_as_in(model, read_checkpoint(directory).layers)
            tied = dict(getattr(model, "all_tied_weights_keys", {}))
            tied = {
                key: source
                for key, source in tied.items()
                if not {key.removesuffix(".weight"), source.removesuffix(".weight")} <= layers.keys()
            }
            try:
                placed = place_layers(model, layers, tied, dtype or torch.float32)
            except (TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"from_pretrained: {directory}: {error}") from error
        for name, layer in placed.layers.items():
            put(model, name, Waiting(layer))
        keep_ties(model, {key: source for key, source in tied.items() if key not in placed.tied})
        ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        # A base model meets the names of the whole one: what belongs to a placed layer ends in its name.
        model._keys_to_ignore_on_load_unexpected = ignored | {rf"(^|\.){re.escape(name)}\." for name in placed.layers}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        for name, module in list(model.named_modules()):
            if isinstance(module, Waiting):
                put(model, name, cast(nn.Module, module.layer).to(device))
        if not self.pre_quantized:
            quantize(model, self.quantization_config.config, inplace=True)
            forget_replaced_ties(model)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors under the names that `read_checkpoint` knows, and the settings that go with them."""
        layers = stored_layers(model)
        if not layers:
            raise ValueError("save_pretrained: no layer of the model is quantized; save it without quantization_config")
        quantized = set(quantized_names(model))
        state = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] not in quantized}
        for name, stored in layers.items():
            state.update({key: value.contiguous() for key, value in layer_tensors(name, stored).items()})
        plain = {key.removesuffix(".weight") for key, t in state.items() if key.endswith(".weight") and t.dim() == 2}
        self.quantization_config.stored = settings_of(layers, plain - layers.keys())
        return state, {}

    def is_serializable(self) -> bool:
        """Models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights are read-only."""
        return False
