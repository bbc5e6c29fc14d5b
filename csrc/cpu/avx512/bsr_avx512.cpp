// Block-sparse kernels for s8 weights, AVX-512.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/dot_avx512.h"
#include "../simd/transpose_avx512.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseInteger_avx512[] = {
    {DType::s8, 16, 4, "vpmaddwd 16x16", bsr_few_rows<DotWiden512>, bsr_tile_channels<DotWiden512, 16>, 16},
    {DType::s8, 4, 4, "vpmaddwd 4x32", nullptr, bsr_tile_tokens<DotWiden512, SteppedColumns, 4, 2>, 32},
    {DType::s8, 1, 4, "vpmaddwd 1x64", nullptr, bsr_tile_tokens<DotWiden512, SteppedColumns, 1, 4>, 64},
};

}  // namespace fastcompress
