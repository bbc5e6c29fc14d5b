// Plain enumerations shared by every part of the native library. No torch, no C++ library types:
// ISA-specific sources include this header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastcompress {

// Instruction sets, weakest first. The numbers are stored in packed blobs.
enum class Isa : int32_t { generic = 0, avx2 = 1, avxvnni = 2, avx512 = 3, avx512vnni = 4, amxint8 = 5 };
constexpr int kIsaCount = 6;

enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2, u8 = 3, s8 = 4, i32 = 5 };

// Codes are stored in packed blobs and mirrored in fastcompress/ops/constants.py.
enum class Activation : int32_t {
    none = 0,
    relu = 1,
    relu6 = 2,
    gelu = 3,  // x * Phi(x), with erf
    gelu_tanh = 4,
    silu = 5,
    hardswish = 6,
    hardsigmoid = 7
};
constexpr int kActivationCount = 8;

// How a layer obtains its 8-bit activations; real: it takes floats as they are (weights in groups only).
enum class InputMode : int32_t { per_tensor = 0, per_token = 1, per_token_symmetric = 2, real = 3 };
constexpr int kInputModeCount = 4;

// Largest reduction length: 255 * 128 * kMaxK still fits int32.
constexpr int64_t kMaxK = 65793;

// Output channels are stored in panels of 16 everywhere.
constexpr int64_t kPanel = 16;

// static: an ISA source's copy must never be the one that the baseline calls.
static constexpr int64_t dtype_bytes(DType t) {
    return t == DType::f32 || t == DType::i32 ? 4 : (t == DType::bf16 || t == DType::f16 ? 2 : 1);
}

static constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

static constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace fastcompress
