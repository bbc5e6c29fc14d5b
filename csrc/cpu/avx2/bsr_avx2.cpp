// Block-sparse w8a8 kernels, 16x4 blocks, for AVX2.
#include "../families/bsr_impl.h"
#include "../simd/dot_avx2.h"
#include "../tables.h"

namespace fastcompress {

extern const BsrTable kBsr_avx2 = {"vpmaddwd 4x16", bsr_rows<DotWiden256>, bsr_tile16<DotWiden256, 4>, 16,
                                   interleave_plain};

}  // namespace fastcompress
