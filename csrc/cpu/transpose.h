// Matrix transposition: dst[j * dst_ld + i] = src[i * src_ld + j] for i < rows, j < columns (leading dimensions in elements).
#pragma once

#include <cstdint>

namespace fastcompress {

void transpose_1(const uint8_t* src, int64_t src_ld, int64_t rows, int64_t columns, uint8_t* dst, int64_t dst_ld);
void transpose_2(const uint16_t* src, int64_t src_ld, int64_t rows, int64_t columns, uint16_t* dst, int64_t dst_ld);
void transpose_4(const uint32_t* src, int64_t src_ld, int64_t rows, int64_t columns, uint32_t* dst, int64_t dst_ld);

// Four rows of bytes to columns of four: transpose_1 for rows = dst_ld = 4.
void interleave_4(const uint8_t* src, int64_t src_ld, int64_t columns, uint8_t* dst);

// By element size (1, 2 or 4 bytes).
void transpose(int64_t element_bytes, const void* src, int64_t src_ld, int64_t rows, int64_t columns, void* dst,
               int64_t dst_ld);

}  // namespace fastcompress
