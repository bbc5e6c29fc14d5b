// Four-bit panels to n16k4 for AVX2: half a line at a time.
#include <immintrin.h>

#include "../tables.h"

namespace {

void unpack_nibbles(const uint8_t* from, int64_t lines, int8_t* to) {
    const __m256i mask = _mm256_set1_epi8(15), middle = _mm256_set1_epi8(8);
    for (int64_t line = 0; line < lines; ++line, from += 32, to += 64) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        const __m256i low = _mm256_and_si256(codes, mask);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_sub_epi8(low, middle));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), _mm256_sub_epi8(high, middle));
    }
}

}  // namespace

namespace fastcompress {

extern const UnpackFunction kUnpackNibbles_avx2 = unpack_nibbles;

}  // namespace fastcompress
