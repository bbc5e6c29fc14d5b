// Weights in groups, avxvnni.
// clang-format off: operand classes come before the templates that use them
#include "../simd/codes_avxvnni.h"
#include "../families/grouped_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const GroupedTable kGrouped_avxvnni = {grouped_product<CodesVnni256, 4, 1, 4, 1, 1>,
                                              grouped_product<CodesVnni256, 4, 2, 4, 1, 1>,
                                              grouped_product<CodesVnni256, 8, 2, 4, 1, 1>,
                                              group_sums<CodesVnni256>,
                                              "vpdpbusd-256 4x16",
                                              1};

}  // namespace fastcompress
