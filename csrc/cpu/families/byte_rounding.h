// Floats to u8 or s8, for outputs and for quantized activations; written once over a Vec and compiled per ISA.
#pragma once

#include "fastcompress/types.h"

namespace {

// clamp(rint(x * inverse_scale) + zero_point) in the range of u8 or s8, NaN -> zero_point.
//
// Values are clamped from above before the conversion, which keeps it in range; whatever is too low, down to the
// conversion's own -2^31, is caught by the saturating additions and packs behind it. s8 is u8 moved by 128: the
// same numbers with the top bit flipped.
struct ByteRounding {
    Vec::F inverse_scale, high;
    int32_t zero_point;  // of the u8 form
    uint8_t flip;

    ByteRounding(float inverse, int32_t zero, bool is_signed)
        : inverse_scale(Vec::set(inverse)),
          high(Vec::set(static_cast<float>(255 - (zero + (is_signed ? 128 : 0))))),
          zero_point(zero + (is_signed ? 128 : 0)),
          flip(is_signed ? 0x80 : 0) {}

    // G vectors to G * Vec::width bytes.
    template <int G>
    __attribute__((always_inline)) void store(uint8_t* out, const Vec::F* x) const {
        if constexpr (G == 4) {
            Vec::store_u8x4(out, bounded(x[0]), bounded(x[1]), bounded(x[2]), bounded(x[3]), zero_point, flip);
        } else {
            for (int g = 0; g < G; ++g) Vec::store_u8(out + g * Vec::width, bounded(x[g]), zero_point, flip);
        }
    }

   private:
    Vec::F bounded(Vec::F x) const { return Vec::min(high, Vec::mul_or_zero(x, inverse_scale)); }
};

}  // namespace
