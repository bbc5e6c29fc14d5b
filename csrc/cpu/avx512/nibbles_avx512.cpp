// Four-bit panels to n16k4 for AVX-512: a line at a time.
#include <immintrin.h>

#include "../tables.h"

namespace {

void unpack_nibbles(const uint8_t* from, int64_t lines, int8_t* to) {
    const __m512i mask = _mm512_set1_epi8(15), middle = _mm512_set1_epi8(8);
    for (int64_t line = 0; line < lines; ++line, from += 32, to += 64) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(codes), _mm256_srli_epi16(codes, 4), 1);
        _mm512_storeu_si512(to, _mm512_sub_epi8(_mm512_and_si512(both, mask), middle));
    }
}

}  // namespace

namespace fastcompress {

extern const UnpackFunction kUnpackNibbles_avx512 = unpack_nibbles;

}  // namespace fastcompress
