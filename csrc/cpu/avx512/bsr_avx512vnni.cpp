// Block-sparse w8a8 kernels, 16x4 blocks, for AVX-512 VNNI.
#include "../families/bsr_wide_impl.h"
#include "../simd/dot_avx512vnni.h"
#include "../tables.h"

namespace fastcompress {

extern const BsrTable kBsr_avx512vnni = {"vpdpbusd 32x16", bsr_rows<DotVnni512>, bsr_tile<DotVnni512>, kWideTokens,
                                         interleave_wide};

}  // namespace fastcompress
