// Codes of four or eight bits times s8 activations with vpdpbusd on 512-bit registers.
#pragma once

#include "codes_avx512.h"

namespace {

struct CodesVnni512 : Codes512Base {
    static Vec::I dot(Vec::I acc, Weights w, Inputs a) { return _mm512_dpbusd_epi32(acc, w, a); }
    static Vec::I dot_bytes(Vec::I acc, Weights w, Inputs a) { return dot(acc, w, a); }
};

}  // namespace
