// Epilogue and quantizers for AVX-512 F/BW/VL/DQ.
// clang-format off: the vector class comes before the templates that use it
#include "../simd/vec_avx512.h"
#include "../families/epilogue_impl.h"
#include "../families/quantize_impl.h"
#include "../families/read_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const ElementwiseTable kElementwise_avx512 = {run_epilogue, run_quantize, run_widen,
                                                     run_split,    run_range,    run_read};

}  // namespace fastcompress
