"""Names and integer codes shared with ``csrc/include/fastcompress/types.h``; a test compares the two."""

__all__ = ["ACTIVATIONS", "INPUT_MODES", "ISA_NAMES", "MAX_K"]

#: Activation name → code in packed blobs. ``gelu`` is the erf form, ``gelu_tanh`` the tanh approximation.
ACTIVATIONS: dict[str, int] = {
    "none": 0,
    "relu": 1,
    "relu6": 2,
    "gelu": 3,
    "gelu_tanh": 4,
    "silu": 5,
    "hardswish": 6,
    "hardsigmoid": 7,
}

#: How a layer gets its integer activations: of 8 bits, or (``dynamic_16bit``, weights in groups) of 16.
INPUT_MODES: dict[str, int] = {"static": 0, "dynamic": 1, "dynamic_symmetric": 2, "dynamic_16bit": 3}

#: Instruction sets with kernels of their own, weakest first. ``reference`` is plain torch.
ISA_NAMES: tuple[str, ...] = ("generic", "avx2", "avxvnni", "avx512", "avx512vnni", "amxint8")

#: Largest reduction length: 255 * 128 * MAX_K still fits int32.
MAX_K = 65_793
