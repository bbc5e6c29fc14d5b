"""Small teachers, students and batches for the distillation tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ConvNet", "Tagger", "images", "same", "snapshot", "tokens"]


class ConvNet(nn.Module):
    """Convolution, BatchNorm, in-place ReLU, a second convolution of stride ``stride``, pooling, dropout, linear."""

    def __init__(self, width: int, seed: int, stride: int = 1, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, stride=stride)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.relu(self.bn1(self.conv1(x))))
        y: Tensor = self.fc(self.dropout(self.pool(x).flatten(1)))
        return y


class Tagger(nn.Module):
    """Embeddings of ``width`` features, a layer, logits per token in a dict; called as Hugging Face models are."""

    def __init__(self, width: int, seed: int, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(20, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **ignored: Any) -> dict[str, Tensor]:
        hidden = torch.tanh(self.mix(self.embed(input_ids)))
        return {"loss": torch.zeros(()), "logits": self.head(hidden)}


def images(seed: int = 0, count: int = 4) -> Tensor:
    """A batch for `ConvNet`."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int = 0) -> dict[str, Tensor]:
    """A batch for `Tagger`: 3 samples of 6 tokens, of which 6, 4 and 2 count."""
    ids = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(6) < torch.tensor([[6], [4], [2]])).long()
    return {"input_ids": ids, "attention_mask": mask}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that distillation might change in a model, and the global random numbers."""
    return {
        "state": copy.deepcopy(model.state_dict()),
        "modules": {
            name: (id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
        "parameters": {n: (id(p), p.requires_grad, p.grad is None) for n, p in model.named_parameters()},
        "buffers": {n: id(b) for n, b in model.named_buffers()},
        "attributes": {name: sorted(m.__dict__) for name, m in model.named_modules()},
        "rng": torch.get_rng_state(),
    }


def same(model: nn.Module, before: dict[str, Any]) -> bool:
    """Whether ``model`` and the random numbers are as `snapshot` found them."""
    after = snapshot(model)
    tensors = [(after["rng"], before["rng"])] + [(after["state"][n], before["state"][n]) for n in before["state"]]
    plain = ("modules", "parameters", "buffers", "attributes")
    return all(torch.equal(a, b) for a, b in tensors) and all(after[key] == before[key] for key in plain)
