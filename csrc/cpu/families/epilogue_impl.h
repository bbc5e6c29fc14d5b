// The epilogue of include/fastcompress/epilogue.h, written once over a Vec and compiled per ISA.
// Only exactly rounded operations appear (add, sub, mul, div, min, max, conversions), so every ISA returns the same bits.
#pragma once

#include "byte_rounding.h"
#include "fastcompress/epilogue.h"

namespace {

using fastcompress::Activation;
using fastcompress::DType;
using fastcompress::Epilogue;

// Polynomials are evaluated by Estrin's scheme: pairs of terms side by side. Horner's chain of dependent operations fills the
// processor's window before the next vectors can start (GELU: 22 -> 15 cycles a vector).

// 1 + r + r^2/2! + ... + r^6/6!, for |r| <= ln(2)/2: exp(r) with relative error < 2e-7.
inline Vec::F exp_taylor(Vec::F r) {
    const Vec::F square = Vec::mul(r, r);
    const Vec::F p01 = Vec::add(r, Vec::set(1.0f));
    const Vec::F p23 = Vec::add(Vec::mul(r, Vec::set(1.0f / 6.0f)), Vec::set(0.5f));
    const Vec::F p45 = Vec::add(Vec::mul(r, Vec::set(1.0f / 120.0f)), Vec::set(1.0f / 24.0f));
    const Vec::F p456 = Vec::add(Vec::mul(square, Vec::set(1.0f / 720.0f)), p45);
    return Vec::add(Vec::mul(square, Vec::add(Vec::mul(square, p456), p23)), p01);
}

// exp(x) for x in [-87, 89): 2^n * exp(r), n = rint(x / ln 2). From 88.4 on the result is infinity.
inline Vec::F exp_bounded(Vec::F x) {
    const Vec::I n = Vec::round(Vec::mul(x, Vec::set(1.44269504088896341f)));
    const Vec::F nf = Vec::to_float(n);
    // ln 2 in two parts; the first has few enough bits that n * part is exact.
    Vec::F r = Vec::sub(x, Vec::mul(nf, Vec::set(0.693359375f)));
    r = Vec::sub(r, Vec::mul(nf, Vec::set(-2.12194440e-4f)));
    return Vec::mul(exp_taylor(r), Vec::exp2i(n));
}

// exp(x) for any x: below -87 it is exp(-87); NaN counts as -87 (callers multiply it back in).
inline Vec::F exp_positive(Vec::F x) { return exp_bounded(Vec::min(Vec::max(x, Vec::set(-87.0f)), Vec::set(89.0f))); }

// x / (1 + exp(-t)).
inline Vec::F times_sigmoid(Vec::F x, Vec::F t) {
    Vec::F e = exp_positive(Vec::sub(Vec::set(0.0f), t));
    return Vec::div(x, Vec::add(Vec::set(1.0f), e));
}

// x * Phi(x), from erfc(z) = t * poly(t) * exp(-z^2), t = 1 / (1 + 0.3275911 z), z = |x| / sqrt 2
// (Abramowitz & Stegun 7.1.26, absolute error 1.5e-7).
inline Vec::F gelu(Vec::F x) {
    // Phi is 0 or 1 long before z = 9; beyond it products would become subnormal, a hundred times slower.
    Vec::F z = Vec::min(Vec::mul(Vec::abs(x), Vec::set(0.70710678118654752f)), Vec::set(9.0f));
    const Vec::F t = Vec::div(Vec::set(1.0f), Vec::add(Vec::set(1.0f), Vec::mul(z, Vec::set(0.3275911f))));
    // Half of the polynomial: halves of the coefficients are exact.
    const Vec::F square = Vec::mul(t, t);
    const Vec::F p01 = Vec::add(Vec::mul(t, Vec::set(-0.5f * 0.284496736f)), Vec::set(0.5f * 0.254829592f));
    const Vec::F p23 = Vec::add(Vec::mul(t, Vec::set(-0.5f * 1.453152027f)), Vec::set(0.5f * 1.421413741f));
    const Vec::F p234 = Vec::add(Vec::mul(square, Vec::set(0.5f * 1.061405429f)), p23);
    const Vec::F p = Vec::add(Vec::mul(square, p234), p01);
    const Vec::F e = exp_bounded(Vec::sub(Vec::set(0.0f), Vec::mul(z, z)));  // z^2 <= 81
    const Vec::F half_erfc = Vec::mul(Vec::mul(p, t), e);
    // From the tail's side: no cancellation where Phi is small.
    const Vec::F phi = Vec::select_negative(x, half_erfc, Vec::sub(Vec::set(1.0f), half_erfc));
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

// The output stage, its constants prepared once a block.
struct Output {
    DType dtype;
    ByteRounding bytes;

    explicit Output(const Epilogue& e)
        : dtype(e.out_dtype), bytes(e.out_inverse_scale, e.out_zero_point, e.out_dtype == DType::s8) {}

    // G vectors to neighbouring elements from `element` on.
    template <int G>
    __attribute__((always_inline)) void store(void* base, int64_t element, const Vec::F* v) const {
        if (dtype == DType::f32) {
            float* to = static_cast<float*>(base) + element;
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) Vec::store(to + g * Vec::width, v[g]);
        } else if (dtype == DType::u8 || dtype == DType::s8) {
            bytes.store<G>(static_cast<uint8_t*>(base) + element, v);
        } else {
            uint16_t* to = static_cast<uint16_t*>(base) + element;
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) {
                if (dtype == DType::bf16) Vec::store_bf16(to + g * Vec::width, v[g]);
                if (dtype == DType::f16) Vec::store_f16(to + g * Vec::width, v[g]);
            }
        }
    }
};

// Where an accumulator's scale comes from; `real` accumulators are float32 and have none.
enum class Scaling { common, by_row, real };

// G vectors of neighbouring channels, row by row, so that the output is written in whole cache lines. Stores may alias
// anything, so whatever the loop needs is copied to locals first.
template <Activation A, Scaling S, int G>
void epilogue_channels(const Epilogue& e, const Output& output, const int32_t* acc, int64_t acc_ld, int64_t row0,
                       int64_t rows, int64_t n) {
    Vec::I sum[G];    // column sums, or zero_point * column sums
    Vec::F scale[G];  // weight scales, or input scale * weight scales
    Vec::F bias[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
        const int64_t channel = n + g * Vec::width;
        if constexpr (S != Scaling::real) {
            sum[g] = Vec::loadi(e.column_sum + channel);
            scale[g] = Vec::load(e.weight_scale + channel);
        }
        // No bias is a bias of -0: the one number whose addition changes nothing, not even the sign of a zero.
        bias[g] = e.bias ? Vec::load(e.bias + channel) : Vec::set(-0.0f);
        if constexpr (S == Scaling::common) {
            sum[g] = Vec::muli(Vec::seti(e.zero_point), sum[g]);
            scale[g] = Vec::mul(Vec::set(e.scale), scale[g]);
        }
    }
    const Output out = output;
    void* const base = e.out;
    const void* const residual = e.residual;
    const DType residual_dtype = e.residual_dtype;
    const int64_t out_ld = e.out_ld, residual_ld = e.residual_ld;
    const float* const row_scale = S == Scaling::by_row ? e.row_scale + row0 : nullptr;
    const int32_t* const row_zero_point = S == Scaling::by_row ? e.row_zero_point + row0 : nullptr;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = row0 + r;
        Vec::F v[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            const int32_t* from = acc + r * acc_ld + g * Vec::width;
            if constexpr (S == Scaling::real) {
                v[g] = Vec::add(Vec::to_real(Vec::loadi(from)), bias[g]);
                continue;
            }
            Vec::I zero_part = sum[g];
            Vec::F s = scale[g];
            if constexpr (S == Scaling::by_row) {
                zero_part = Vec::muli(Vec::seti(row_zero_point[r]), zero_part);
                s = Vec::mul(Vec::set(row_scale[r]), s);
            }
            const Vec::I product = Vec::subi(Vec::loadi(from), zero_part);
            v[g] = Vec::add(Vec::mul(Vec::to_float(product), s), bias[g]);
        }
        if (residual) {
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g)
                v[g] = Vec::add(v[g], load_as_float(residual, residual_dtype, row * residual_ld + n + g * Vec::width));
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) v[g] = activate<A>(v[g]);
        out.store<G>(base, row * out_ld + n, v);
    }
}

// Fewer than a vector of channels: the same arithmetic on a one-row copy of the operands, of which only the real
// channels are read and written.
template <Activation A, Scaling S>
void epilogue_tail(const Epilogue& e, const Output& output, const int32_t* acc, int64_t acc_ld, int64_t row0,
                   int64_t rows, int64_t n, int64_t left) {
    const int64_t out_size = fastcompress::dtype_bytes(e.out_dtype);
    alignas(64) uint8_t out[Vec::width * 4], residual[Vec::width * 4] = {};
    Epilogue one = e;
    one.out = out - n * out_size;
    one.out_ld = 0;
    if (e.residual) one.residual = residual - n * fastcompress::dtype_bytes(e.residual_dtype);
    one.residual_ld = 0;
    for (int64_t r = 0; r < rows; ++r) {
        if (e.residual) {
            const int64_t size = fastcompress::dtype_bytes(e.residual_dtype);
            const uint8_t* from = static_cast<const uint8_t*>(e.residual) + ((row0 + r) * e.residual_ld + n) * size;
            for (int64_t i = 0; i < left * size; ++i) residual[i] = from[i];
        }
        epilogue_channels<A, S, 1>(one, output, acc + r * acc_ld, acc_ld, row0 + r, 1, n);
        uint8_t* to = static_cast<uint8_t*>(e.out) + ((row0 + r) * e.out_ld + n) * out_size;
        for (int64_t i = 0; i < left * out_size; ++i) to[i] = out[i];
    }
}

template <Activation A, Scaling S>
void epilogue_block(const Epilogue& e, const int32_t* acc, int64_t acc_ld, int64_t row0, int64_t rows, int64_t col0,
                    int64_t cols) {
    const Output output(e);
    // A few rows at a time: many stores to rows a multiple of 4096 bytes apart would wait for the same sets of L1.
    constexpr int64_t kRows = 8;
    if (rows > kRows && cols > 4 * Vec::width) {
        for (int64_t r = 0; r < rows; r += kRows)
            epilogue_block<A, S>(e, acc + r * acc_ld, acc_ld, row0 + r, rows - r < kRows ? rows - r : kRows, col0,
                                 cols);
        return;
    }
    int64_t j = 0;
    for (; j + 4 * Vec::width <= cols; j += 4 * Vec::width)
        epilogue_channels<A, S, 4>(e, output, acc + j, acc_ld, row0, rows, col0 + j);
    for (; j + 2 * Vec::width <= cols; j += 2 * Vec::width)
        epilogue_channels<A, S, 2>(e, output, acc + j, acc_ld, row0, rows, col0 + j);
    for (; j + Vec::width <= cols; j += Vec::width)
        epilogue_channels<A, S, 1>(e, output, acc + j, acc_ld, row0, rows, col0 + j);
    if (j < cols) epilogue_tail<A, S>(e, output, acc + j, acc_ld, row0, rows, col0 + j, cols - j);
}

template <Activation A>
void epilogue_scaled(const Epilogue& e, const int32_t* acc, int64_t acc_ld, int64_t row0, int64_t rows, int64_t col0,
                     int64_t cols) {
    if (e.real) return epilogue_block<A, Scaling::real>(e, acc, acc_ld, row0, rows, col0, cols);
    if (e.row_scale) return epilogue_block<A, Scaling::by_row>(e, acc, acc_ld, row0, rows, col0, cols);
    epilogue_block<A, Scaling::common>(e, acc, acc_ld, row0, rows, col0, cols);
}

// Raw accumulators, zero point compensated.
void epilogue_i32(const Epilogue& e, const int32_t* acc, int64_t acc_ld, int64_t row0, int64_t rows, int64_t col0,
                  int64_t cols) {
    for (int64_t r = 0; r < rows; ++r) {
        const uint32_t zero = static_cast<uint32_t>(e.row_zero_point ? e.row_zero_point[row0 + r] : e.zero_point);
        int32_t* out = static_cast<int32_t*>(e.out) + (row0 + r) * e.out_ld + col0;
        for (int64_t j = 0; j < cols; ++j)
            out[j] = static_cast<int32_t>(static_cast<uint32_t>(acc[r * acc_ld + j]) -
                                          zero * static_cast<uint32_t>(e.column_sum[col0 + j]));
    }
}

void run_epilogue(const Epilogue& e, const int32_t* acc, int64_t acc_ld, int64_t row0, int64_t rows, int64_t col0,
                  int64_t cols) {
    if (e.out_dtype == DType::i32) return epilogue_i32(e, acc, acc_ld, row0, rows, col0, cols);
    switch (e.activation) {
#define FC_CASE(A)      \
    case Activation::A: \
        return epilogue_scaled<Activation::A>(e, acc, acc_ld, row0, rows, col0, cols);
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
