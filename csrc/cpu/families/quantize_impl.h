// Activation quantizers, written once over a Vec and compiled per ISA (docs/architecture.md, section 1).
#pragma once

#include "byte_rounding.h"
#include "fastcompress/types.h"

namespace {

using fastcompress::DType;

template <DType T>
inline Vec::F load_float(const void* base, int64_t element) {
    if constexpr (T == DType::f32) return Vec::load(static_cast<const float*>(base) + element);
    if constexpr (T == DType::bf16) return Vec::load_bf16(static_cast<const uint16_t*>(base) + element);
    return Vec::load_f16(static_cast<const uint16_t*>(base) + element);
}

// Loads `left` < width elements, zeros behind them.
template <DType T>
inline Vec::F load_float_tail(const void* base, int64_t element, int64_t left) {
    constexpr int64_t size = T == DType::f32 ? 4 : 2;
    alignas(64) uint8_t buffer[Vec::width * 4] = {};
    const uint8_t* from = static_cast<const uint8_t*>(base) + element * size;
    for (int64_t i = 0; i < left * size; ++i) buffer[i] = from[i];
    return load_float<T>(buffer, 0);
}

template <DType T>
void quantize_as(const void* x, int64_t count, const ByteRounding& rounding, uint8_t* out) {
    const ByteRounding q = rounding;  // a local: the stores could alias anything else
    int64_t i = 0;
    for (; i + 4 * Vec::width <= count; i += 4 * Vec::width) {
        const Vec::F v[4] = {load_float<T>(x, i), load_float<T>(x, i + Vec::width),
                             load_float<T>(x, i + 2 * Vec::width), load_float<T>(x, i + 3 * Vec::width)};
        q.store<4>(out + i, v);
    }
    for (; i + Vec::width <= count; i += Vec::width) {
        const Vec::F v = load_float<T>(x, i);
        q.store<1>(out + i, &v);
    }
    if (i < count) {
        uint8_t buffer[Vec::width];
        const Vec::F v = load_float_tail<T>(x, i, count - i);
        q.store<1>(buffer, &v);
        for (int64_t j = 0; i + j < count; ++j) out[i + j] = buffer[j];
    }
}

void run_quantize(const void* x, DType dtype, int64_t count, float inverse_scale, int32_t zero_point, bool is_signed,
                  uint8_t* out) {
    const ByteRounding q(inverse_scale, zero_point, is_signed);
    if (dtype == DType::f32) return quantize_as<DType::f32>(x, count, q, out);
    if (dtype == DType::bf16) return quantize_as<DType::bf16>(x, count, q, out);
    quantize_as<DType::f16>(x, count, q, out);
}

template <DType T>
void widen_as(const void* x, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) Vec::store(out + i, load_float<T>(x, i));
    if (i < count) {
        float buffer[Vec::width];
        Vec::store(buffer, load_float_tail<T>(x, i, count - i));
        for (int64_t j = 0; i + j < count; ++j) out[i + j] = buffer[j];
    }
}

void run_widen(const void* x, DType dtype, int64_t count, float* out) {
    dtype == DType::bf16 ? widen_as<DType::bf16>(x, count, out) : widen_as<DType::f16>(x, count, out);
}

template <DType T>
void split_as(const void* x, int64_t count, float inverse_scale, int8_t* high, int8_t* low) {
    const auto bytes = [inverse_scale](Vec::F v, int8_t* h, int8_t* l) {
        const Vec::I q = Vec::round(Vec::mul(v, Vec::set(inverse_scale)));
        Vec::store_bytes(l, q);
        Vec::store_bytes(h, Vec::shift_right_8(Vec::addi(q, Vec::seti(128))));
    };
    int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) bytes(load_float<T>(x, i), high + i, low + i);
    if (i < count) {
        int8_t h[Vec::width], l[Vec::width];
        bytes(load_float_tail<T>(x, i, count - i), h, l);
        for (int64_t j = 0; i + j < count; ++j) {
            high[i + j] = h[j];
            low[i + j] = l[j];
        }
    }
}

void run_split(const void* x, DType dtype, int64_t count, float inverse_scale, int8_t* high, int8_t* low) {
    if (dtype == DType::f32) return split_as<DType::f32>(x, count, inverse_scale, high, low);
    if (dtype == DType::bf16) return split_as<DType::bf16>(x, count, inverse_scale, high, low);
    split_as<DType::f16>(x, count, inverse_scale, high, low);
}

// Two independent running extremes hide the latency of min/max.
struct Range {
    Vec::F lo, hi;
    Vec::I magnitude;

    void include(Vec::F v) {
        lo = Vec::min(lo, v);
        hi = Vec::max(hi, v);
        magnitude = Vec::maxi(magnitude, Vec::magnitude_bits(v));
    }
};

template <DType T>
bool range_as(const void* x, int64_t count, float* lo, float* hi) {
    const Range empty{Vec::set(0.0f), Vec::set(0.0f), Vec::seti(0)};
    Range r0 = empty, r1 = empty;
    int64_t i = 0;
    for (; i + 2 * Vec::width <= count; i += 2 * Vec::width) {
        r0.include(load_float<T>(x, i));
        r1.include(load_float<T>(x, i + Vec::width));
    }
    if (i + Vec::width <= count) {
        r0.include(load_float<T>(x, i));
        i += Vec::width;
    }
    if (i < count) r1.include(load_float_tail<T>(x, i, count - i));  // the zeros behind the tail change nothing
    // 0 - x, not -x, and + 0: extremes that are zero are +0, whatever zeros the row holds.
    *lo = 0.0f - Vec::largest(Vec::sub(Vec::set(0.0f), Vec::min(r0.lo, r1.lo)));
    *hi = Vec::largest(Vec::max(r0.hi, r1.hi)) + 0.0f;
    return Vec::largesti(Vec::maxi(r0.magnitude, r1.magnitude)) < 0x7f800000;
}

bool run_range(const void* x, DType dtype, int64_t count, float* lo, float* hi) {
    if (dtype == DType::f32) return range_as<DType::f32>(x, count, lo, hi);
    if (dtype == DType::bf16) return range_as<DType::bf16>(x, count, lo, hi);
    return range_as<DType::f16>(x, count, lo, hi);
}

}  // namespace
