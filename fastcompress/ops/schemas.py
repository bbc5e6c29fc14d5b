"""Schemas of the ``torch.ops.fastcompress`` operators: the single place where Python spells them."""

import torch

__all__ = ["PYTHON_SCHEMAS", "SCHEMAS", "define"]

#: The public operators. The native module defines the same strings; without it :func:`define` does.
SCHEMAS: tuple[str, ...] = (
    "quantize_per_tensor(Tensor input, float scale, int zero_point, ScalarType dtype) -> Tensor",
    "quantize_per_token(Tensor input, bool symmetric=False) -> (Tensor, Tensor, Tensor)",
    "linear_w8a8(Tensor input, Tensor packed, int out_features, Tensor? residual=None, ScalarType? out_dtype=None, "
    "float out_scale=1.0, int out_zero_point=0, Tensor? input_scale=None, Tensor? input_zero_point=None) -> Tensor",
    *(
        f"{name}(Tensor input, Tensor packed, int out_features, Tensor? residual=None, ScalarType? out_dtype=None, "
        "float out_scale=1.0, int out_zero_point=0) -> Tensor"
        for name in ("linear_w4", "linear_w8", "linear_bsr")
    ),
    *(
        f"{name}(Tensor input, Tensor packed, int out_channels, int[] kernel_size, int[] stride, int[] padding, "
        "int[] dilation, Tensor? residual=None, ScalarType? out_dtype=None, float out_scale=1.0, "
        "int out_zero_point=0) -> Tensor"
        for name in ("conv2d_w8a8", "conv2d_bsr")
    ),
    "embedding_packed(Tensor indices, Tensor packed, int num_embeddings, int embedding_dim, ScalarType out_dtype) "
    "-> Tensor",
    "conv2d_chain(Tensor input, Tensor program, int out_channels, int[] height, int[] width, ScalarType out_dtype) "
    "-> Tensor",
)

#: Operators that are always defined and implemented in Python. ``dequantize`` reads ``"weight"`` or ``"bias"`` of
#: a blob as floats; the backward operators return the gradient of the input and the float32 gradient before the
#: activation function (which is the residual's).
PYTHON_SCHEMAS: tuple[str, ...] = (
    "dequantize(Tensor packed, str field, int[] size, ScalarType dtype) -> Tensor",
    "linear_backward(Tensor grad_output, Tensor input, Tensor packed, Tensor? residual=None, "
    "Tensor? input_scale=None, Tensor? input_zero_point=None) -> (Tensor, Tensor)",
    "conv2d_backward(Tensor grad_output, Tensor input, Tensor packed, int[] kernel_size, int[] stride, "
    "int[] padding, int[] dilation, Tensor? residual=None) -> (Tensor, Tensor)",
)


def define(library: torch.library.Library, *, native: bool) -> None:
    """Define in `library` every operator that nobody has defined yet (`native`: the C++ module defined SCHEMAS)."""
    for schema in PYTHON_SCHEMAS if native else SCHEMAS + PYTHON_SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
