"""Scores of weights from training itself: what each criterion gathers from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .criteria import magnitude_scores, random_scores
from .ranks import mean_over_ranks, several_ranks
from .trained_layer import TrainedLayer, take_gradients, take_products

__all__ = ["TrainingScores"]

#: Which of the criteria need w * dL/dw of every step.
_GATHERING = ("taylor", "movement")


class TrainingScores:
    """The scores of a `Pruner`'s layers.

    Args:
        layers: the layers; their masks start to collect what the criterion needs.
        criterion: one of `TRAINING_CRITERIA`.
        regrow: whether gradients will be asked for.
        seed: of criterion random.
    """

    def __init__(self, layers: Sequence[TrainedLayer], criterion: str, regrow: bool, seed: int) -> None:
        self.layers = tuple(layers)
        self.criterion = criterion
        self.regrow = regrow
        self.seed = seed
        self.gathering = criterion in _GATHERING
        self.sums: list[Tensor] = [_zeros(layer) for layer in layers] if self.gathering else []
        self.seen = [False] * len(layers)
        if self.gathering or regrow:
            for layer in layers:
                layer.watch(gradient=regrow, product=self.gathering)

    def stop(self) -> None:
        """Stop collecting."""
        if self.gathering or self.regrow:
            for layer in self.layers:
                layer.watch(gradient=False, product=False)

    @torch.no_grad()
    def observe(self) -> None:
        """Take one step's gradients into account.

        They are the mean over all processes, so that the sums are the same everywhere and any process can save them.
        Where they are not finite, the step counts nothing, as a gradient scaler skips it too.
        """
        if not self.gathering:
            return
        products: Sequence[Tensor | None] = take_products(self.layers)
        self.seen = [seen or product is not None for seen, product in zip(self.seen, products, strict=True)]
        # The model may have moved since the last step.
        self.sums = [total.to(layer.parameter.device) for layer, total in zip(self.layers, self.sums, strict=True)]
        if several_ranks():
            # All of them, as processes that reached different layers must still send the same.
            products = mean_over_ranks(
                [
                    torch.zeros_like(total) if product is None else product.to(total.dtype)
                    for total, product in zip(self.sums, products, strict=True)
                ]
            )
        for total, product in zip(self.sums, products, strict=True):
            if product is not None:
                step = product.nan_to_num_(0.0, 0.0, 0.0)
                total.add_(step.abs_() if self.criterion == "taylor" else step.neg_())

    def values(self, step: int) -> list[Tensor]:
        """Each layer's scores after ``step``; those of masked weights mean nothing.

        Raises:
            RuntimeError: the criterion needs gradients and a layer had none since the last update.
        """
        if self.criterion == "magnitude":
            return [magnitude_scores(layer.weight) for layer in self.layers]
        if self.criterion == "random":
            # From the step, so that nothing need be saved to resume, and the same on all processes.
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
            return [random_scores(layer.weight, generator) for layer in self.layers]
        for layer, seen in zip(self.layers, self.seen, strict=True):
            if not seen:
                raise RuntimeError(_unreached(layer.name, self.criterion))
        return list(self.sums)

    def gradients(self) -> list[Tensor]:
        """Each layer's dense gradient of this step, the mean over all processes.

        Raises:
            RuntimeError: a layer had none.
        """
        found = take_gradients(self.layers)
        gradients = []
        for layer, gradient in zip(self.layers, found, strict=True):
            if gradient is None:
                raise RuntimeError(_unreached(layer.name, "rigl"))
            gradients.append(gradient.float())
        return [gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in mean_over_ranks(gradients)]

    def forget_gradients(self) -> None:
        """Drop this step's gradients, so that the next step's stand alone."""
        if self.regrow:
            take_gradients(self.layers)

    @torch.no_grad()
    def updated(self, grown: Sequence[Tensor | None]) -> None:
        """The masks have changed, and the weights where ``grown`` is True start anew."""
        for index, (total, new) in enumerate(zip(self.sums, grown, strict=False)):
            if self.criterion == "taylor":
                total.zero_()
                self.seen[index] = False
            elif new is not None:
                total.masked_fill_(new, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Layer name → what is gathered, of the layers that had gradients."""
        pairs = zip(self.layers, self.sums, self.seen, strict=False)
        return {layer.name: total.clone() for layer, total, seen in pairs if seen}

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ``ValueError`` unless ``state`` came from `state_dict` of the same layers."""
        shapes = {layer.name: total.shape for layer, total in zip(self.layers, self.sums, strict=False)}
        for name, value in state.items():
            if name not in shapes or value.shape != shapes[name]:
                raise ValueError(
                    f"Pruner.load_state_dict: scores of layer {name!r} with shape {list(value.shape)} do not belong to "
                    "this model"
                )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `check_state` accepted."""
        for index, (layer, total) in enumerate(zip(self.layers, self.sums, strict=False)):
            self.seen[index] = layer.name in state
            if layer.name in state:
                total.copy_(state[layer.name])
            else:
                total.zero_()


def _zeros(layer: TrainedLayer) -> Tensor:
    weight = layer.parameter.detach()
    return torch.zeros_like(weight, dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32)


def _unreached(name: str, what: str) -> str:
    return (
        f"Pruner.step: {what!r} needs the gradient of layer {name!r}, and no backward() reached it since the last "
        "update; call step() once after each optimizer step, or put the layer into ignore"
    )
