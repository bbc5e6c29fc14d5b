// Unsigned codes of four or eight bits as floats, in plain C++; lanes are output channels.
#pragma once

#include "vec_generic.h"

namespace {

struct CodesGeneric {
    static Vec::I load(const uint8_t* p) {
        Vec::I words;
        __builtin_memcpy(words.v, p, sizeof words.v);
        return words;
    }
    template <int bits>
    static Vec::I shift(Vec::I words) {
        for (int l = 0; l < Vec::width; ++l)
            words.v[l] = static_cast<int32_t>(static_cast<uint32_t>(words.v[l]) >> bits);
        return words;
    }
    static constexpr bool has_table = false;
    // The masked bits as part of a mantissa: (words & mask) | exponent.
    static Vec::F place(const Vec::I& words, int32_t mask, int32_t exponent) {
        Vec::F r;
        for (int l = 0; l < Vec::width; ++l) r.v[l] = bits_float(static_cast<uint32_t>((words.v[l] & mask) | exponent));
        return r;
    }
    static Vec::F multiply_add(const Vec::F& a, const Vec::F& b, const Vec::F& c) {
        return Vec::add(Vec::mul(a, b), c);
    }
    static Vec::F load_bytes(const uint8_t* p) {
        Vec::F r;
        for (int l = 0; l < Vec::width; ++l) r.v[l] = static_cast<float>(p[l]);
        return r;
    }
    static void fetch(const uint8_t*) {}
};

}  // namespace
