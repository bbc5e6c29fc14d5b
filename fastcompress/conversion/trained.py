"""Finishing quantization-aware training: layers with fake quantization become layers with the same integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fastcompress.config import QuantConfig
from fastcompress.models.calibrate import ForwardFn
from fastcompress.models.speed import Timer
from fastcompress.models.targets import Candidate, Wording, module_names, unwanted
from fastcompress.nn import PackedLayer
from fastcompress.nn.mask import foreign_parametrizations
from fastcompress.quantization.fake_layer import take_off, weight_quantizer
from fastcompress.quantization.fixed import FixedScales, scheme_of
from fastcompress.quantization.plan import Source
from fastcompress.quantization.ptq import quantize_model
from fastcompress.record import LayerDecision
from fastcompress.schemes import SCHEMES

from .convert import ConvertConfig

__all__ = ["convert_trained"]

_WORDING = Wording("convert", "converted")


def convert_trained(
    model: nn.Module,
    config: ConvertConfig,
    timer: Timer,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    progress: bool | None = None,
) -> tuple[nn.Module, list[LayerDecision], tuple[str, ...]]:
    """Make quantized layers of those in ``model`` that have fake quantization, in place; say what became of each.

    A layer that is not quantized loses its fake quantization and keeps its float weight and its mask. An exception
    leaves ``model`` half changed: the caller puts it back together (`undone_on_error`).

    Returns:
        The model (another object only where the model itself is a single layer), the decisions, and the schemes of the
        prepared layers, each once; neither decisions nor schemes where there is no fake quantization.

    Raises:
        ValueError: a target that matches nothing, no layer whose inputs were ever seen, or a layer that cannot be taken
            over as it was trained.
    """
    everything = [
        Candidate(names, module)
        for module, names in module_names(model).items()
        if isinstance(module, (nn.Linear, nn.Conv2d, PackedLayer))
    ]
    prepared = [candidate for candidate in everything if weight_quantizer(candidate.module) is not None]
    if not prepared:
        return model, [], ()
    left_out = unwanted(model, everything, config, _WORDING)
    decisions = {
        c.name: LayerDecision(c.name, c.kind, "kept", f"{left_out[c.name]}; it keeps its fake quantization")
        for c in prepared
        if c.name in left_out
    }
    chosen = [candidate for candidate in prepared if candidate.name not in left_out]
    schemes = dict.fromkeys(scheme_of(candidate.module) for candidate in prepared)
    fixed = _take_over(chosen) if chosen else {}
    for scheme in schemes:
        own = {layer: scales for layer, scales in fixed.items() if scales.scheme == scheme}
        if own:
            settings = QuantConfig(scheme, only_if_faster=config.only_if_faster)
            source = Source(None, example, forward_fn, progress, "convert")
            model, made = quantize_model(model, settings, source, timer, own)
            decisions |= {decision.name: _told(decision, scheme, example is not None) for decision in made}
    return model, list(decisions.values()), tuple(schemes)


def _take_over(chosen: list[Candidate]) -> dict[nn.Module, FixedScales]:
    """The scales of the chosen layers, whose fake quantization is then gone."""
    fixed: dict[nn.Module, FixedScales] = {}
    for candidate in chosen:
        module, what = candidate.module, f"convert: layer {candidate.name!r} ({candidate.kind})"
        others = foreign_parametrizations(module)
        if others:
            raise ValueError(
                f"{what} has the parametrization {', '.join(others)} besides its fake quantization; remove it first "
                "with torch.nn.utils.parametrize.remove_parametrizations"
            )
        fixed[module] = FixedScales.of(module)
        device = fixed[module].weight.device
        if device.type != "cpu":
            raise ValueError(f"{what} is on {device}; the kernels run on the CPU, call model.cpu() first")
    if all(scales.problem is not None for scales in fixed.values()):
        first = chosen[0]
        raise ValueError(
            f"convert: none of the layers with fake quantization can become int8: of {first.name!r}, "
            f"{fixed[first.module].problem}; train with set_fake_quant(model, 'train') first, or pass calibration_data "
            "to prepare"
        )
    for candidate in chosen:
        take_off(candidate.module)
    return fixed


def _told(decision: LayerDecision, scheme: str, measured_at_examples: bool) -> LayerDecision:
    reason = decision.reason
    if decision.action in ("kept", "skipped"):
        reason += "; it lost its fake quantization and stays float"
    elif decision.action == "quantized":
        reason += "; with the scales it was trained with"
        measurable = not SCHEMES[scheme].weight_only
        if measurable and decision.quantized_seconds is None and not measured_at_examples:
            reason += " (example_inputs would allow a measurement)"
    return replace(decision, reason=reason)
