// Weights in groups, generic.
// clang-format off: operand classes come before the templates that use them
#include "../simd/codes_generic.h"
#include "../families/grouped_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const GroupedTable kGrouped_generic = {grouped_product<CodesGeneric, 4, 1, 2, 1, 1>,
                                              grouped_product<CodesGeneric, 4, 2, 2, 1, 1>,
                                              grouped_product<CodesGeneric, 8, 2, 2, 1, 1>,
                                              group_sums<CodesGeneric>,
                                              "c++ 2x16",
                                              1};

}  // namespace fastcompress
