"""Embeddings with four or eight bits, and the output heads that share their weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from fastcompress.config import QuantConfig
from fastcompress.models.parents import layer_problem
from fastcompress.models.targets import Candidate, module_names, tied_groups
from fastcompress.nn import GroupQuantLinear, QuantEmbedding
from fastcompress.quantization.group_layer import scale_dtype

__all__ = ["Embedded", "find_embeddings", "wanted_embeddings"]


@dataclass(frozen=True)
class Embedded:
    """An embedding that is going to be quantized.

    Attributes:
        candidate: the embedding.
        heads: linears without bias that share its weight; they will share its blob.
    """

    candidate: Candidate
    heads: tuple[Candidate, ...] = ()

    def built(self, config: QuantConfig) -> tuple[QuantEmbedding, dict[str, GroupQuantLinear]]:
        """The quantized embedding, and its heads by name.

        Raises:
            TypeError, ValueError: it cannot be quantized.
        """
        module = self.candidate.module
        assert isinstance(module, nn.Embedding)
        bits = config.embedding_bits
        assert bits is not None
        embedding = QuantEmbedding.from_float(
            module, weight_bits=bits, group_size=config.inputs_per_group, scale_dtype=scale_dtype(config)
        )
        return embedding, {head.name: embedding.head() for head in self.heads}


def embedding_problem(module: nn.Embedding) -> str | None:
    """Why an embedding must stay float; None when it need not."""
    if type(module).forward is not nn.Embedding.forward:
        return f"it is a {type(module).__name__} with a forward of its own"
    if module.max_norm is not None:
        return "it has max_norm, which changes its weight when it runs"
    return layer_problem(module)


def find_embeddings(model: nn.Module) -> Iterator[tuple[Embedded, str | None]]:
    """Every embedding of a model with its tied heads, and why it must stay float (None: it need not)."""
    names = module_names(model)
    tied = {id(module): group for group in tied_groups(model) for _, module in group}
    for module, known in names.items():
        if not isinstance(module, nn.Embedding):
            continue
        problem, heads = embedding_problem(module), []
        for name, other in tied.get(id(module), []):
            if other is module:
                continue
            if type(other) is nn.Linear and other.bias is None and other.weight is module.weight:
                heads.append(Candidate(names[other], other))
            else:
                problem = problem or f"its weight is tied to {name} ({type(other).__name__}), which stays float"
        yield Embedded(Candidate(known, module), tuple(heads)), problem


def wanted_embeddings(
    found: Iterable[tuple[Embedded, str | None]], left_out: Mapping[str, str]
) -> Iterator[tuple[Embedded, str, str]]:
    """What becomes of each embedding: it, ``"quantized"``, ``"kept"`` or ``"skipped"``, and why.

    Args:
        left_out: candidates that targets and ignore leave out: name → reason. A head among them keeps its embedding.
    """
    for embedded, problem in found:
        name = embedded.candidate.name
        head = next((head.name for head in embedded.heads if head.name in left_out), None)
        if name in left_out:
            yield embedded, "kept", left_out[name]
        elif head is not None:
            yield embedded, "kept", f"its weight is tied to {head}, which is {left_out[head]}"
        elif problem is not None:
            yield embedded, "skipped", problem
        else:
            yield embedded, "quantized", "for its size, not measured"
