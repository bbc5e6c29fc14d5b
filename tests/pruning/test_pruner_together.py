"""`Pruner` beside what else touches a model: averages, copies, pickles, torch.compile, other parametrizations."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastcompress as fc
from fastcompress.pruning import Pruner, PrunerConfig, mask_of, masked, sparsity_of
from fastcompress.pruning.mask import mask_module, original_weight

from .models import masks_of, mlp, train_step, vectors


def test_averaged_models_follow() -> None:
    model, x = mlp(), vectors()[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(model, PrunerConfig(0.8, criterion="movement", start_step=1, end_step=6))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(6):
        train_step(model, optimizer, x)
        pruner.step()
        average.update_parameters(model)
    for name, mask in masks_of(model).items():
        other = average.module.get_submodule(name)
        assert torch.equal(mask_of(other), mask)
        assert bool((other.weight[~mask] == 0).all())
        assert not torch.equal(other.weight, model.get_submodule(name).weight)


def test_copies_go_their_own_way() -> None:
    model, x = mlp(), vectors()[0]
    pruner = Pruner(model, PrunerConfig(0.8, criterion="movement", start_step=1, end_step=4))
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    twin(x).sum().backward()
    assert all(step.product_probe is None for step in twin.modules() if isinstance(step, fc.pruning.Mask))
    pruner.step()
    model(x).sum().backward()
    pruner.step()
    assert sparsity_of(twin) == 0.0
    assert pruner.sparsity > 0.0


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_masks_change_without_compiling_again(criterion: str) -> None:
    torch.compiler.reset()
    model, x = mlp(), vectors()[0]
    twin = copy.deepcopy(model)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    config = PrunerConfig(0.8, criterion=criterion, start_step=1, end_step=5)
    pruners = [Pruner(model, config), Pruner(twin, config)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, twin)]
    buffers = {name: mask_of(module) for name, module in masked(model).items()}
    for _ in range(7):
        train_step(compiled, optimizers[0], x)
        train_step(twin, optimizers[1], x)
        assert pruners[0].step() == pruners[1].step()
    assert len(graphs) == 1
    assert all(mask_of(module) is buffers[name] for name, module in masked(model).items())
    assert pruners[0].sparsity == pytest.approx(0.8, abs=1e-3)
    for name, mask in masks_of(model).items():
        assert torch.equal(mask, mask_of(twin.get_submodule(name)))


class Rounded(nn.Module):
    """A stand-in for fake quantization with a straight-through gradient."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ((weight * 32).round() / 32 - weight).detach()


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_scores_look_below_what_is_stacked_on_the_mask(criterion: str) -> None:
    model, x = mlp(), vectors()[0]
    pruner = Pruner(model, PrunerConfig(0.5, criterion=criterion, schedule="one-shot", start_step=1))
    for module in masked(model).values():
        nn.utils.parametrize.register_parametrization(module, "weight", Rounded())
    weight = original_weight(model[0]).detach().clone()
    model(x).square().sum().backward()
    gradient = original_weight(model[0]).grad.clone()  # nothing is masked yet, so this is dense
    pruner.step()
    scores = weight.abs() if criterion == "magnitude" else -weight * gradient
    kept = mask_of(model[0])
    assert int(kept.sum()) == weight.numel() // 2
    assert float(scores[kept].min()) >= float(scores[~kept].max())  # dead ReLUs make equal ones
    assert float(scores[kept].max()) > float(scores[kept].min())
    assert bool((model[0].weight[~kept] == 0).all())
    again = Pruner(model, PrunerConfig(0.75, schedule="one-shot"))  # a mask with something on it can go on
    assert again.sparsity == 0.75


def test_layers_with_other_parametrizations_and_no_mask_are_refused() -> None:
    model = mlp()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Rounded())
    with pytest.raises(
        ValueError, match=r"Pruner: layer '0' \(Linear\) is named in targets but cannot be pruned.*Rounded"
    ):
        Pruner(model, PrunerConfig(0.5, end_step=3, targets="0"))


def test_masks_that_collect_gradients_can_be_pickled_and_moved() -> None:
    model, x = mlp(), vectors()[0]
    pruner = Pruner(model, PrunerConfig(0.5, criterion="movement", schedule="one-shot", start_step=2))
    model(x).sum().backward()
    pruner.step()
    twin = pickle.loads(pickle.dumps(mask_module(model[0])))
    assert twin.product_probe is None
    assert torch.equal(twin(torch.ones(64, 32)), torch.ones(64, 32))
    model.double()
    before = pruner.state_dict()["scores"]["0"]
    weight = original_weight(model[0]).detach().clone()
    model.zero_grad()
    model(x.double()).sum().backward()
    pruner.step()
    gradient = original_weight(model[0]).grad
    torch.testing.assert_close(pruner.state_dict()["scores"]["0"], before - (weight * gradient).float())
    assert pruner.sparsity == 0.5
