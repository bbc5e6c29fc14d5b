// The epilogue of include/fastcompress/epilogue.h, written once over a Vec and compiled per ISA.
// Only exactly rounded operations appear (add, sub, mul, div, min, max, conversions), so every ISA returns the same bits.
#pragma once

#include "fastcompress/epilogue.h"

namespace {

using fastcompress::Activation;
using fastcompress::DType;
using fastcompress::Epilogue;

// exp(x) for any x: 2^n * p(r), n = rint(x / ln 2), |r| <= ln(2)/2, Taylor to degree 6 (relative error < 2e-7).
// Arguments are clamped to [-87, 88], so the result is a normal number.
inline Vec::F exp_positive(Vec::F x) {
    x = Vec::min(Vec::max(x, Vec::set(-87.0f)), Vec::set(88.0f));  // NaN becomes -87: callers multiply it back in
    Vec::I n = Vec::round(Vec::mul(x, Vec::set(1.44269504088896341f)));
    Vec::F nf = Vec::to_float(n);
    // ln 2 in two parts; the first has few enough bits that n * part is exact.
    Vec::F r = Vec::sub(x, Vec::mul(nf, Vec::set(0.693359375f)));
    r = Vec::sub(r, Vec::mul(nf, Vec::set(-2.12194440e-4f)));
    Vec::F p = Vec::set(1.0f / 720.0f);
    p = Vec::add(Vec::mul(p, r), Vec::set(1.0f / 120.0f));
    p = Vec::add(Vec::mul(p, r), Vec::set(1.0f / 24.0f));
    p = Vec::add(Vec::mul(p, r), Vec::set(1.0f / 6.0f));
    p = Vec::add(Vec::mul(p, r), Vec::set(0.5f));
    p = Vec::add(Vec::mul(p, r), Vec::set(1.0f));
    p = Vec::add(Vec::mul(p, r), Vec::set(1.0f));
    return Vec::mul(p, Vec::exp2i(n));
}

// x / (1 + exp(-t)). When 1 + exp(-t) overflows nothing: t is clamped inside exp.
inline Vec::F times_sigmoid(Vec::F x, Vec::F t) {
    Vec::F e = exp_positive(Vec::sub(Vec::set(0.0f), t));
    return Vec::div(x, Vec::add(Vec::set(1.0f), e));
}

// x * Phi(x), from erfc(z) = t * poly(t) * exp(-z^2), t = 1 / (1 + 0.3275911 z), z = |x| / sqrt 2
// (Abramowitz & Stegun 7.1.26, absolute error 1.5e-7).
inline Vec::F gelu(Vec::F x) {
    Vec::F z = Vec::mul(Vec::abs(x), Vec::set(0.70710678118654752f));
    Vec::F t = Vec::div(Vec::set(1.0f), Vec::add(Vec::set(1.0f), Vec::mul(z, Vec::set(0.3275911f))));
    Vec::F p = Vec::set(1.061405429f);
    p = Vec::add(Vec::mul(p, t), Vec::set(-1.453152027f));
    p = Vec::add(Vec::mul(p, t), Vec::set(1.421413741f));
    p = Vec::add(Vec::mul(p, t), Vec::set(-0.284496736f));
    p = Vec::add(Vec::mul(p, t), Vec::set(0.254829592f));
    Vec::F e = exp_positive(Vec::sub(Vec::set(0.0f), Vec::mul(z, z)));
    Vec::F half_erfc = Vec::mul(Vec::mul(Vec::mul(p, t), e), Vec::set(0.5f));
    // From the tail's side, so that large negative x keep their relative accuracy.
    Vec::F phi = Vec::select_negative(x, half_erfc, Vec::sub(Vec::set(1.0f), half_erfc));
    return Vec::mul(x, phi);
}

inline Vec::F gelu_tanh(Vec::F x) {
    Vec::F cube = Vec::mul(Vec::mul(x, x), x);
    Vec::F inner = Vec::add(x, Vec::mul(Vec::set(0.044715f), cube));
    return times_sigmoid(x, Vec::mul(Vec::set(1.5957691216057308f), inner));  // 2 * sqrt(2 / pi)
}

inline Vec::F hard_gate(Vec::F x) {
    Vec::F shifted = Vec::add(x, Vec::set(3.0f));
    Vec::F clamped = Vec::min(Vec::set(6.0f), Vec::max(Vec::set(0.0f), shifted));
    return Vec::mul(clamped, Vec::set(1.0f / 6.0f));
}

template <Activation A>
inline Vec::F activate(Vec::F v) {
    if constexpr (A == Activation::relu) return Vec::max(Vec::set(0.0f), v);
    if constexpr (A == Activation::relu6) return Vec::min(Vec::set(6.0f), Vec::max(Vec::set(0.0f), v));
    if constexpr (A == Activation::gelu) return gelu(v);
    if constexpr (A == Activation::gelu_tanh) return gelu_tanh(v);
    if constexpr (A == Activation::silu) return times_sigmoid(v, v);
    if constexpr (A == Activation::hardswish) return Vec::mul(v, hard_gate(v));
    if constexpr (A == Activation::hardsigmoid) return hard_gate(v);
    return v;
}

inline Vec::F load_as_float(const void* base, DType dtype, int64_t element) {
    if (dtype == DType::f32) return Vec::load(static_cast<const float*>(base) + element);
    const uint16_t* half = static_cast<const uint16_t*>(base) + element;
    return dtype == DType::bf16 ? Vec::load_bf16(half) : Vec::load_f16(half);
}

inline void store_as(const Epilogue& e, void* base, int64_t element, Vec::F v) {
    switch (e.out_dtype) {
        case DType::f32:
            Vec::store(static_cast<float*>(base) + element, v);
            return;
        case DType::bf16:
            Vec::store_bf16(static_cast<uint16_t*>(base) + element, v);
            return;
        case DType::f16:
            Vec::store_f16(static_cast<uint16_t*>(base) + element, v);
            return;
        default: {
            const float low = e.out_dtype == DType::u8 ? 0.0f : -128.0f;
            const float zero = static_cast<float>(e.out_zero_point);
            v = Vec::nan_to_zero(Vec::mul(v, Vec::set(e.out_inverse_scale)));
            v = Vec::min(Vec::set(low + 255.0f - zero), Vec::max(Vec::set(low - zero), v));
            Vec::store_byte(static_cast<uint8_t*>(base) + element,
                            Vec::addi(Vec::round(v), Vec::seti(e.out_zero_point)));
        }
    }
}

inline int64_t element_bytes(DType t) {
    return t == DType::f32 || t == DType::i32 ? 4 : (t == DType::bf16 || t == DType::f16 ? 2 : 1);
}

// One row of 16-channel-padded accumulators. Tail channels go through a small buffer: neither the residual nor the
// output is touched beyond `cols`.
template <Activation A>
inline void epilogue_row(const Epilogue& e, const int32_t* acc, int64_t row, int64_t col0, int64_t cols) {
    const int32_t zero_point = e.row_zero_point ? e.row_zero_point[row] : e.zero_point;
    const float row_scale = e.row_scale ? e.row_scale[row] : e.scale;
    const Vec::I zero = Vec::seti(zero_point);
    const Vec::F scale = Vec::set(row_scale);
    const int64_t out_row = row * e.out_ld;
    const int64_t residual_row = row * e.residual_ld;
    for (int64_t j = 0; j < cols; j += Vec::width) {
        const int64_t n = col0 + j;
        const int64_t left = cols - j;
        Vec::I a = Vec::subi(Vec::loadi(acc + j), Vec::muli(zero, Vec::loadi(e.column_sum + n)));
        if (e.out_dtype == DType::i32) {
            int32_t* out = static_cast<int32_t*>(e.out) + out_row + n;
            if (left >= Vec::width) {
                Vec::storei(out, a);
            } else {
                int32_t buffer[Vec::width];
                Vec::storei(buffer, a);
                for (int64_t i = 0; i < left; ++i) out[i] = buffer[i];
            }
            continue;
        }
        Vec::F v = Vec::mul(Vec::to_float(a), Vec::mul(scale, Vec::load(e.weight_scale + n)));
        if (e.bias) v = Vec::add(v, Vec::load(e.bias + n));
        if (left >= Vec::width) {
            if (e.residual) v = Vec::add(v, load_as_float(e.residual, e.residual_dtype, residual_row + n));
            store_as(e, e.out, out_row + n, activate<A>(v));
            continue;
        }
        alignas(64) uint8_t buffer[Vec::width * 4] = {};
        if (e.residual) {
            const int64_t size = element_bytes(e.residual_dtype);
            const uint8_t* from = static_cast<const uint8_t*>(e.residual) + (residual_row + n) * size;
            for (int64_t i = 0; i < left * size; ++i) buffer[i] = from[i];
            v = Vec::add(v, load_as_float(buffer, e.residual_dtype, 0));
        }
        store_as(e, buffer, 0, activate<A>(v));
        const int64_t size = element_bytes(e.out_dtype);
        uint8_t* to = static_cast<uint8_t*>(e.out) + (out_row + n) * size;
        for (int64_t i = 0; i < left * size; ++i) to[i] = buffer[i];
    }
}

template <Activation A>
void epilogue_block(const Epilogue& e, const int32_t* acc, int64_t acc_ld, int64_t row0, int64_t rows, int64_t col0,
                    int64_t cols) {
    for (int64_t r = 0; r < rows; ++r) epilogue_row<A>(e, acc + r * acc_ld, row0 + r, col0, cols);
}

void run_epilogue(const Epilogue& e, const int32_t* acc, int64_t acc_ld, int64_t row0, int64_t rows, int64_t col0,
                  int64_t cols) {
    switch (e.activation) {
#define FC_CASE(A)                                                             \
    case Activation::A:                                                        \
        epilogue_block<Activation::A>(e, acc, acc_ld, row0, rows, col0, cols); \
        return;
        FC_CASE(none)
        FC_CASE(relu)
        FC_CASE(relu6)
        FC_CASE(gelu)
        FC_CASE(gelu_tanh)
        FC_CASE(silu)
        FC_CASE(hardswish)
        FC_CASE(hardsigmoid)
#undef FC_CASE
    }
}

}  // namespace
