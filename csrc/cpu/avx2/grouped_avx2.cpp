// Weights in groups, avx2.
// clang-format off: operand classes come before the templates that use them
#include "../simd/codes_avx2.h"
#include "../families/grouped_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const GroupedTable kGrouped_avx2 = {grouped_product<CodesMadd256, 4, 1, 4, 1, 1>,
                                           grouped_product<CodesMadd256, 4, 2, 4, 1, 1>,
                                           grouped_product<CodesMadd256, 8, 2, 4, 1, 1>,
                                           group_sums<CodesMadd256>,
                                           "vpmaddubsw-256 4x16",
                                           1};

}  // namespace fastcompress
