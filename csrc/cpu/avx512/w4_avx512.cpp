// Four-bit kernels, avx512.
// clang-format off: operand classes come before the templates that use them
#include "../simd/nibbles_avx512.h"
#include "../families/w4_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const NibbleTable kNibbles_avx512 = {nibble_product<NibblesMadd512, 6, 4>, "vpmaddubsw 6x64", 6, 4};

}  // namespace fastcompress
