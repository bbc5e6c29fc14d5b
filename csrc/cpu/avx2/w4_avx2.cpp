// Four-bit kernels, avx2.
// clang-format off: operand classes come before the templates that use them
#include "../simd/nibbles_avx2.h"
#include "../families/w4_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const NibbleTable kNibbles_avx2 = {nibble_product<NibblesMadd256, 4, 1>, "vpmaddubsw-256 4x16", 4, 1};

}  // namespace fastcompress
