// Four-bit weights times s8 activations with vpdpbusd on 256-bit registers (AVX-VNNI, VEX-encoded).
#pragma once

#include "nibbles_avx2.h"

namespace {

struct NibblesVnni256 : Nibbles256Base {
    static Vec::I dot(Vec::I acc, Weights w, Inputs a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }
};

}  // namespace
