"""The functions that turn a model into a compressed one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from fastcompress.config import QuantConfig, Target
from fastcompress.conversion import ConvertConfig, finish_model
from fastcompress.models.calibrate import ForwardFn, as_batches, replayable
from fastcompress.models.copying import copied
from fastcompress.models.speed import Timer
from fastcompress.models.undo import undone_on_error
from fastcompress.quantization.fake_layer import fake_quantized
from fastcompress.quantization.plan import Source
from fastcompress.quantization.ptq import quantize_model
from fastcompress.record import RECORD_ATTRIBUTE, CompressionRecord, LayerDecision, record_of
from fastcompress.report.environment import cpu_model, isa_name, library_version
from fastcompress.report.measure import compare

__all__ = ["convert", "quantize"]


def quantize(
    model: nn.Module,
    scheme: str | QuantConfig = "W8A8",
    calibration_data: Any = None,
    *,
    targets: Iterable[Target] | Target | None = None,
    ignore: Iterable[Target] | Target | None = None,
    observer: str | None = None,
    algorithm: str | None = None,
    group_size: int | None = None,
    example_inputs: Any = None,
    forward_fn: ForwardFn | None = None,
    only_if_faster: bool | None = None,
    inplace: bool = False,
    progress: bool | None = None,
    timer: Timer | None = None,
) -> nn.Module:
    """Quantize a trained model's layers to int8 or four bits, where that is possible and faster.

    Pruned layers, masked or not, become block-sparse int8 where that is faster than dense int8.

    Args:
        model: any model; it is run, not traced.
        scheme: ``"W8A8"`` (static activations; convolutions and linears; needs ``calibration_data``),
            ``"W8A8-dynamic"`` (activations per token at run time; linears), ``"W4A8"`` (that with four-bit weights),
            ``"W4A16"`` and ``"W8A16"`` (four- and eight-bit weights, 16-bit activations; linears), or a `QuantConfig`
            with every option.
        calibration_data: iterable of batches. A tensor is ``model(x)``, a dict ``model(**x)``, a tuple or list its
            first element. Optional for all but ``"W8A8"``: there it shows what can be fused and which shapes are
            measured.
        targets: quantize only these: module names, ``"re:…"`` patterns that match a whole name, or classes. A container
            stands for all layers inside.
        ignore: leave these as they are; the same notation, stronger than ``targets``.
        observer: how static activation ranges are found, see `QuantConfig`.
        algorithm: how four-bit weights (and those of ``"W8A16"``) are found: ``"rtn"``, ``"hqq"``, ``"gptq"`` or
            ``"awq"``; the last two need ``calibration_data``.
        group_size: inputs that share a scale, a multiple of 8, or -1 for the whole row; see `QuantConfig`.
        example_inputs: one batch like those of real use (same protocol): layers are measured at its shapes.
        forward_fn: ``forward_fn(model, batch)`` runs the model in place of the batch protocol.
        only_if_faster: measure each distinct layer and keep the dense one where int8 is not faster on this machine
            (default True). Without data a linear is measured at 1 and 128 tokens. ``"W4A16"`` and ``"W8A16"`` always
            replace: they are for size as well.
        inplace: change ``model`` itself and return it, instead of a copy.
        progress: show progress bars; by default when it takes long and stderr is a terminal.
        timer: replaces the stopwatch: ``timer({"dense": f, "int8": g})`` gives the seconds of one call of each; for a
            pruned layer it is also asked to compare ``"int8"`` with ``"sparse int8"``.

    Returns:
        The quantized model, in the training mode it had. Every layer's fate and its reason are in its record, see
        `fastcompress.explain`; layers that could not be quantized are also logged, in one warning.

    Raises:
        TypeError, ValueError: a wrong argument, no data, a target that matches nothing. ``model`` is unchanged after
            any exception.

    Example:
        >>> q = fc.quantize(model, "W8A8", calibration_data=loader)
        >>> q = fc.quantize(bert, "W8A8-dynamic", ignore="classifier", example_inputs=tokens)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"quantize: model must be a torch.nn.Module, got {type(model).__name__}")
    prepared = next(iter(fake_quantized(model)), None)
    if prepared is not None:
        raise ValueError(
            f"quantize: layer {prepared!r} has fake quantization from prepare, whose scales quantize would throw away; "
            "call fastcompress.convert"
        )
    given = {"targets": targets, "ignore": ignore, "observer": observer, "only_if_faster": only_if_faster}
    config = _configure(scheme, {**given, "algorithm": algorithm, "group_size": group_size})
    source = _source(config, calibration_data, example_inputs, forward_fn, progress)
    earlier = record_of(model)
    work = copied(model, "quantize", inplace)
    result, decisions = quantize_model(work, config, source, timer or compare)
    _refuse_new_root("quantize", inplace, model, result)
    setattr(result, RECORD_ATTRIBUTE, _record(config.scheme, config.to_json(), decisions, earlier))
    return result


def convert(
    model: nn.Module,
    *,
    targets: Iterable[Target] | Target | None = None,
    ignore: Iterable[Target] | Target | None = None,
    only_if_faster: bool = True,
    example_inputs: Any = None,
    forward_fn: ForwardFn | None = None,
    inplace: bool = False,
    progress: bool | None = None,
    timer: Timer | None = None,
) -> nn.Module:
    """Finish what a model carries from `prepare` and `prune`: quantized and block-sparse layers where those are faster.

    A layer with fake quantization becomes a `QuantLinear` or `QuantConv2d` (block-sparse if it is masked and that is
    faster still), or a `GroupQuantLinear` (``"W4A8"``, ``"W4A16"``), with exactly the integers, scales and zero points
    that training simulated. The BatchNorm that was folded there is folded here; with ``example_inputs``, activations
    that follow are fused. A layer that is not faster quantized loses its fake quantization, and if it is masked it is
    treated as any masked layer; ``"W4A16"`` layers are always replaced, for they are smaller.

    A masked linear or convolution (float32 or bfloat16, without groups) becomes a `SparseLinear` or `SparseConv2d`, cut
    into the coarsest blocks that its zeros fit: 16x1, 4x1 or 1x1 (16x2 in bfloat16), whatever the mask's pattern. Every
    other masked layer stays dense, and its zeros are written into the weight. Finished layers and models that carry
    nothing are left alone. (Zeros run fastest in int8: `quantize` takes masked models as they are.)

    Args:
        model: any model; it is run, if there are ``example_inputs``, and not traced.
        targets: convert only these: module names, ``"re:…"`` patterns that match a whole name, or classes. A container
            stands for all layers inside. Others keep their masks and fake quantization.
        ignore: leave these as they are; the same notation, stronger than ``targets``.
        only_if_faster: measure each distinct layer and keep the dense one where quantized or block-sparse is not faster
            on this machine (default True). False: quantized and block-sparse wherever that is possible.
        example_inputs: one batch like those of real use (a tensor is ``model(x)``, a dict ``model(**x)``, a tuple or
            list its first element): layers are measured at its shapes. Without it a linear is measured at 1 and 128
            tokens; a convolution with fake quantization becomes int8 unmeasured, and a masked one is decided by the
            density of its blocks: sparse up to 80% of 16x1, 60% of 4x1, 30% of 1x1 or 50% of 16x2
            (`fastcompress.nn.blocks.BREAK_EVEN`).
        forward_fn: ``forward_fn(model, batch)`` runs the model in place of the batch protocol.
        inplace: change ``model`` itself and return it, instead of a copy.
        progress: show progress bars; by default when it takes long and stderr is a terminal.
        timer: replaces the stopwatch: ``timer({"dense": f, "sparse": g})`` gives the seconds of one call of each; for
            fake quantization it is asked what `quantize` asks.

    Returns:
        The model, in the training mode it had. Every such layer's fate and its reason are in its record, see
        `fastcompress.explain`; layers that could not be converted are also logged, in one warning.

    Raises:
        TypeError, ValueError: a wrong argument, a target that matches nothing, a layer whose mask cannot be taken off
            alone, or fake quantization that never saw an input. ``model`` is unchanged after any exception.

    Example:
        >>> p = fc.prune(model, 0.9, "16x1", calibration_data=loader)
        >>> s = fc.convert(p, example_inputs=batch)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    if forward_fn is not None and not callable(forward_fn):
        raise TypeError(f"convert: forward_fn must be callable as forward_fn(model, batch), got {forward_fn!r:.80}")
    config = ConvertConfig(targets, () if ignore is None else ignore, only_if_faster)  # type: ignore[arg-type]
    earlier = record_of(model)
    work = copied(model, "convert", inplace)
    with undone_on_error(work):
        result, decisions, parts = finish_model(work, config, timer or compare, example_inputs, forward_fn, progress)
        _refuse_new_root("convert", inplace, model, result)
    if decisions:
        before = [] if earlier is None else [part for part in earlier.scheme.split(" + ") if part not in parts]
        scheme = " + ".join([*before, *parts])
        made = config.to_json() if earlier is None else {**earlier.config, "convert": config.to_json()}
        setattr(result, RECORD_ATTRIBUTE, _record(scheme, made, decisions, earlier))
    return result


def _configure(scheme: str | QuantConfig, given: Mapping[str, Any]) -> QuantConfig:
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(scheme, QuantConfig):
        return replace(scheme, **changes)
    return QuantConfig(scheme, **changes)


def _refuse_new_root(function: str, inplace: bool, model: nn.Module, result: nn.Module) -> None:
    if inplace and result is not model:
        raise ValueError(
            f"{function}: inplace=True cannot turn a {type(model).__name__} into another object; it has no parent to "
            "be replaced in, use inplace=False and its return value"
        )


def _source(
    config: QuantConfig, calibration_data: Any, example_inputs: Any, forward_fn: ForwardFn | None, progress: bool | None
) -> Source:
    if forward_fn is not None and not callable(forward_fn):
        raise TypeError(f"quantize: forward_fn must be callable as forward_fn(model, batch), got {forward_fn!r:.80}")
    batches = None if calibration_data is None else as_batches(calibration_data)
    if batches is None:
        needing = [f"scheme {config.scheme!r}"] if config.input_mode == "static" else []
        needing += ["smoothquant"] if config.smoothquant is not None else []
        needing += ["bias_correction"] if config.bias_correction else []
        needing += [f"algorithm {config.algorithm!r}"] if config.algorithm in ("gptq", "awq") else []
        if needing:
            raise ValueError(
                f"quantize: {' and '.join(needing)} needs calibration_data: an iterable of batches, some hundred real "
                "samples in all; the other schemes and the algorithms 'rtn' and 'hqq' need none"
            )
    elif config.equalize or config.smoothquant is not None or config.algorithm in ("gptq", "awq"):
        batches = replayable(batches)
    return Source(batches, example_inputs, forward_fn, progress)


def _record(
    scheme: str, config: Mapping[str, Any], decisions: list[LayerDecision], earlier: CompressionRecord | None
) -> CompressionRecord:
    """The model's record; decisions of earlier calls about other layers stay in it."""
    decided = {decision.name for decision in decisions}
    kept = [] if earlier is None else [decision for decision in earlier.layers if decision.name not in decided]
    environment = {"cpu": cpu_model(), "isa": isa_name()}
    return CompressionRecord(scheme, config, (*kept, *decisions), library_version(), environment)
