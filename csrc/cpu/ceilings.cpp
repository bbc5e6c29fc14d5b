#include "ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "dispatch.h"
#include "features.h"
#include "parallel.h"
#include "tables.h"

namespace fastcompress {
namespace {

using Loop = int64_t (*)(int64_t iterations);
using Kinds = std::vector<std::pair<std::string, Loop>>;

Kinds kinds() {
    Kinds all;
    Loop vector_int8 = nullptr;
    for (Isa isa : compiled_isas()) {
        if (!isa_supported(isa)) continue;
        const Loop loop = w8a8_table(isa).ceiling;
        all.emplace_back(std::string("int8:") + isa_name(isa), loop);
        if (isa == Isa::amxint8) {
            all.emplace_back("amx_int8", loop);
        } else {
            vector_int8 = loop;
        }
    }
    all.emplace_back("int8", vector_int8);
    [[maybe_unused]] const CpuFeatures& f = cpu_features();
    Loop fp32 = nullptr;
#if defined(FASTCOMPRESS_HAVE_AVX2)
    if (f.avx2) fp32 = ceiling_fp32_avx2;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512)
    if (f.avx512) fp32 = ceiling_fp32_avx512;
#endif
    if (fp32) all.emplace_back("fp32", fp32);
#if defined(FASTCOMPRESS_HAVE_AVX512BF16)
    if (f.avx512bf16) all.emplace_back("bf16", ceiling_bf16_avx512);
#endif
#if defined(FASTCOMPRESS_HAVE_AMXBF16)
    if (f.amxbf16) all.emplace_back("amx_bf16", ceiling_bf16_amx);
#endif
    return all;
}

}  // namespace

std::vector<std::string> ceiling_kinds() {
    std::vector<std::string> names;
    for (const auto& kind : kinds()) names.push_back(kind.first);
    return names;
}

double measure_ceiling(const std::string& kind, double seconds) {
    Loop loop = nullptr;
    for (const auto& [name, each] : kinds())
        if (name == kind) loop = each;
    if (!loop) throw std::invalid_argument("ceiling: this machine has no '" + kind + "'");
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::duration<double>(seconds);
    double best = 0;
    do {
        std::atomic<int64_t> operations{0};
        const auto start = Clock::now();
        parallel(max_threads(), [&](Team&) { operations += loop(100000); });
        const std::chrono::duration<double> elapsed = Clock::now() - start;
        best = std::max(best, static_cast<double>(operations.load()) / elapsed.count());
    } while (Clock::now() < deadline);
    return best;
}

}  // namespace fastcompress
