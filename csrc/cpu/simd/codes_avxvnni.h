// Codes of four or eight bits times s8 activations with vpdpbusd on 256-bit registers (AVX-VNNI, VEX-encoded).
#pragma once

#include "codes_avx2.h"

namespace {

struct CodesVnni256 : Codes256Base {
    static Vec::I dot(Vec::I acc, Weights w, Inputs a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }
    static Vec::I dot_bytes(Vec::I acc, Weights w, Inputs a) { return dot(acc, w, a); }
};

}  // namespace
