// Block-sparse kernels for s8 weights, AVX2.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/dot_avx2.h"
#include "../simd/transpose_avx2.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseInteger_avx2[] = {
    {DType::s8, 16, 4, "vpmaddwd 16x4", bsr_few_rows<DotWiden256>, bsr_tile_channels<DotWiden256, 4>, 16},
    {DType::s8, 4, 4, "vpmaddwd 4x16", nullptr, bsr_tile_tokens<DotWiden256, SteppedColumns, 4, 2>, 16},
    {DType::s8, 1, 4, "vpmaddwd 1x64", nullptr, bsr_tile_tokens<DotWiden256, SteppedColumns, 1, 8>, 64},
};

}  // namespace fastcompress
