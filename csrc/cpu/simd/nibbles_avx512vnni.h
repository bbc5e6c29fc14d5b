// Four-bit weights times s8 activations with vpdpbusd on 512-bit registers.
#pragma once

#include "nibbles_avx512.h"

namespace {

struct NibblesVnni512 : Nibbles512Base {
    static Vec::I dot(Vec::I acc, Weights w, Inputs a) { return _mm512_dpbusd_epi32(acc, w, a); }
};

}  // namespace
