// bf16 and f16 conversions in integer arithmetic, equal bit for bit to the vector instructions (F16C) and to torch.
#pragma once

#include <cstdint>

namespace {

inline uint32_t float_bits(float x) {
    uint32_t u;
    __builtin_memcpy(&u, &x, 4);
    return u;
}

inline float bits_float(uint32_t u) {
    float x;
    __builtin_memcpy(&x, &u, 4);
    return x;
}

inline float bf16_to_float(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; NaN becomes a quiet NaN that keeps its upper payload.
inline uint16_t float_to_bf16(float x) {
    uint32_t u = float_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

inline float f16_to_float(uint16_t h) {
    uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1fu) {  // infinity; NaN is made quiet
        return bits_float(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
    }
    if (exponent != 0) return bits_float(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // subnormal: mantissa * 2^-24, exact
    return bits_float(sign | float_bits(magnitude));
}

inline uint16_t float_to_f16(float x) {
    uint32_t u = float_bits(x);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and more: infinity
    if (a < 0x38800000u) {                                               // below 2^-14: subnormal result
        // |x| + 0.5 has its last bit at 2^-24, so the addition rounds |x| to a multiple of 2^-24.
        float shifted = bits_float(a) + 0.5f;
        return static_cast<uint16_t>(sign | (float_bits(shifted) - 0x3f000000u));
    }
    a += 0xfffu + ((a >> 13) & 1u);  // may carry into the exponent, up to infinity: both are right
    return static_cast<uint16_t>(sign | ((a - 0x38000000u) >> 13));
}

}  // namespace
