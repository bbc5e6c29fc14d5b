// Block-sparse kernels for s8 weights, AVX-512 VNNI.
// clang-format off: the transposition comes before the templates that use it
#include "../simd/dot_avx512vnni.h"
#include "../simd/transpose_avx512.h"
#include "../families/bsr_channels_impl.h"
#include "../families/bsr_tokens_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const SparseKernel kSparseInteger_avx512vnni[] = {
    {DType::s8, 16, 4, "vpdpbusd 16x16", bsr_few_rows<DotVnni512>, bsr_tile_channels<DotVnni512, 16>, 16},
    {DType::s8, 4, 4, "vpdpbusd 4x32", nullptr, bsr_tile_tokens<DotVnni512, SteppedColumns, 4, 2>, 32},
    {DType::s8, 1, 4, "vpdpbusd 1x64", nullptr, bsr_tile_tokens<DotVnni512, SteppedColumns, 1, 4>, 64},
};

}  // namespace fastcompress
