// Epilogue and quantizers for any CPU.
// clang-format off: the vector class comes before the templates that use it
#include "../simd/vec_generic.h"
#include "../families/epilogue_impl.h"
#include "../families/quantize_impl.h"
#include "../families/read_impl.h"
// clang-format on
#include "../tables.h"

namespace fastcompress {

extern const ElementwiseTable kElementwise_generic = {run_epilogue, run_quantize, run_widen,
                                                      run_split,    run_range,    run_read};

}  // namespace fastcompress
