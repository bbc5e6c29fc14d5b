// Block-sparse w8a8 kernels, 16x4 blocks, for AVX-512 BW/VL without VNNI.
#include "../families/bsr_wide_impl.h"
#include "../simd/dot_avx512.h"
#include "../tables.h"

namespace fastcompress {

extern const BsrTable kBsr_avx512 = {"vpmaddwd 32x16", bsr_rows<DotWiden512>, bsr_tile<DotWiden512>, kWideTokens,
                                     interleave_wide};

}  // namespace fastcompress
