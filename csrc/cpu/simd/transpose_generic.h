// 16 x 16 transposition of 32-bit words in plain C++.
#pragma once

#include "transpose_part.h"

namespace {

inline void transpose_16x16(const int32_t* src, int64_t src_ld, int32_t* dst, int64_t dst_ld) {
    transpose_part(src, src_ld, 16, 16, dst, dst_ld);
}

}  // namespace
