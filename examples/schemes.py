"""How the two example networks are quantized: the choices that demo, benchmarks and parity tests share."""

from __future__ import annotations

from typing import Any

from fastcompress import QuantConfig

__all__ = ["EFFICIENTNET_LITE0", "MINILM", "MINILM_PRUNING"]

#: Dynamic int8. With every linear in int8 the mean cosine to the fp32 embeddings is just below 0.999 (0.9964 at worst).
#: Nearly half of that error enters through the value projections, whose outputs no softmax evens out. Leaving the last
#: two of the six in float, one part in 36 of the multiplications, gives 0.9992 and 0.9980.
MINILM = QuantConfig("W8A8-dynamic", weight_observer="mse", ignore=("re:encoder.layer.[45].attention.self.value",))

#: Static int8, every convolution and the classifier.
EFFICIENTNET_LITE0 = QuantConfig("W8A8")

#: What `fastcompress.prune` is told: half of the blocks of the feed-forward layers, which hold most of the weights.
MINILM_PRUNING: dict[str, Any] = {
    "sparsity": 0.5,
    "pattern": "16x4",
    "criterion": "sparsegpt",
    "targets": r"re:encoder\.layer\.\d+\.(intermediate|output)\.dense",
}
