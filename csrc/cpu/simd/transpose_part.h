// Transposition of blocks of 32-bit words in plain C++.
#pragma once

#include <cstdint>

namespace {

// dst[j][i] = src[i][j] of up to 16 rows and columns; leading dimensions in elements.
inline void transpose_part(const int32_t* src, int64_t src_ld, int64_t rows, int64_t columns, int32_t* dst,
                           int64_t dst_ld) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) __builtin_memcpy(dst + j * dst_ld + i, src + i * src_ld + j, 4);
}

}  // namespace
