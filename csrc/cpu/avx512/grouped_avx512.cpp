// Weights in groups, avx512.
// clang-format off: operand classes come before the templates that use them
#include "../simd/codes_avx512.h"
#include "../families/grouped_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const GroupedTable kGrouped_avx512 = {grouped_product<CodesMadd512, 4, 1, 6, 2, 4>,
                                             grouped_product<CodesMadd512, 4, 2, 6, 2, 4>,
                                             grouped_product<CodesMadd512, 8, 2, 6, 2, 4>,
                                             group_sums<CodesMadd512>,
                                             "vpmaddubsw 6x32",
                                             4};

}  // namespace fastcompress
