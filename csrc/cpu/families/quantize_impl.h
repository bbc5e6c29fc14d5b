// Activation quantizers, written once over a Vec and compiled per ISA (docs/architecture.md, section 1).
#pragma once

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

// clamp(rint(x / s), qmin - zp, qmax - zp) + zp: clamping before the rounding is the same, the bounds being integers,
// and keeps the conversion in range.
struct Quantizer {
    Vec::F inverse_scale, low, high;
    Vec::I zero;

    Vec::I operator()(Vec::F x) const {
        Vec::F v = Vec::nan_to_zero(Vec::mul(x, inverse_scale));
        return Vec::addi(Vec::round(Vec::min(high, Vec::max(low, v))), zero);
    }
};

template <DType T>
void quantize_as(const void* x, int64_t count, const Quantizer& q, uint8_t* out) {
    int64_t i = 0;
    for (; i + Vec::width <= count; i += Vec::width) Vec::store_byte(out + i, q(load_float<T>(x, i)));
    if (i < count) {
        uint8_t buffer[Vec::width];
        Vec::store_byte(buffer, q(load_float_tail<T>(x, i, count - i)));
        for (int64_t j = 0; i + j < count; ++j) out[i + j] = buffer[j];
    }
}

void run_quantize(const void* x, DType dtype, int64_t count, float inverse_scale, int32_t zero_point, int32_t qmin,
                  int32_t qmax, uint8_t* out) {
    const Quantizer q{Vec::set(inverse_scale), Vec::set(static_cast<float>(qmin - zero_point)),
                      Vec::set(static_cast<float>(qmax - zero_point)), Vec::seti(zero_point)};
    if (dtype == DType::f32) return quantize_as<DType::f32>(x, count, q, out);
    if (dtype == DType::bf16) return quantize_as<DType::bf16>(x, count, q, out);
    quantize_as<DType::f16>(x, count, q, out);
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
    alignas(64) float los[Vec::width], his[Vec::width];
    alignas(64) int32_t magnitudes[Vec::width];
    Vec::store(los, Vec::min(r0.lo, r1.lo));
    Vec::store(his, Vec::max(r0.hi, r1.hi));
    Vec::storei(magnitudes, Vec::maxi(r0.magnitude, r1.magnitude));
    float l = 0.0f, h = 0.0f;
    int32_t m = 0;
    for (int k = 0; k < Vec::width; ++k) {
        l = los[k] < l ? los[k] : l;
        h = his[k] > h ? his[k] : h;
        m = magnitudes[k] > m ? magnitudes[k] : m;
    }
    *lo = l;
    *hi = h;
    return m < 0x7f800000;
}

bool run_range(const void* x, DType dtype, int64_t count, float* lo, float* hi) {
    if (dtype == DType::f32) return range_as<DType::f32>(x, count, lo, hi);
    if (dtype == DType::bf16) return range_as<DType::bf16>(x, count, lo, hi);
    return range_as<DType::f16>(x, count, lo, hi);
}

}  // namespace
