// What this CPU, under this operating system, can run. Detection only; dispatch.cpp chooses.
#pragma once

#include "fastcompress/types.h"

namespace fastcompress {

struct CpuFeatures {
    bool avx2 = false;  // AVX2 + FMA + F16C, registers saved by the OS
    bool avxvnni = false;
    bool avx512 = false;  // F, BW, VL, DQ
    bool avx512vnni = false;
    bool avx512bf16 = false;
    bool amxint8 = false;  // AMX-TILE and AMX-INT8, permission granted by the OS
    bool amxbf16 = false;
};

const CpuFeatures& cpu_features();  // detected once

bool isa_supported(Isa isa);

}  // namespace fastcompress
