#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "features.h"
#include "tables.h"

namespace fastcompress {
namespace {

constexpr const char* kNames[kIsaCount] = {"generic", "avx2", "avxvnni", "avx512", "avx512vnni", "amxint8"};

// `small`: the kernels for few rows, null where the main one serves them as well.
KernelTable combine(Isa isa, const W8A8Table& w, const ElementwiseTable& e, const W8A8Table* small) {
    return {isa,
            kNames[static_cast<int>(isa)],
            w.gemm,
            w.gemm_name,
            w.k_unit,
            w.tile_rows,
            w.call_rows,
            w.uniform_rows,
            w.multiply_adds_per_ns,
            small ? small->gemm : nullptr,
            small ? int64_t{4} : int64_t{0},
            w.depthwise ? w.depthwise : small->depthwise,
            sparse_table(isa),
            grouped_table(isa),
            nibble_unpacker(isa),
            e.epilogue,
            e.quantize,
            e.widen,
            e.split,
            e.range};
}

std::string supported_names() {
    std::string names;
    for (Isa isa : compiled_isas())
        if (isa_supported(isa)) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
    return names;
}

Isa parse(const std::string& name, const char* origin) {
    for (Isa isa : compiled_isas()) {
        if (name != isa_name(isa)) continue;
        if (!isa_supported(isa))
            throw std::runtime_error(std::string(origin) + "='" + name +
                                     "' is not supported by this CPU; supported here: " + supported_names());
        return isa;
    }
    throw std::runtime_error(std::string(origin) + "='" + name + "' is unknown; supported here: " + supported_names());
}

Isa choose() {
    if (const char* forced = std::getenv("FASTCOMPRESS_ISA"); forced && *forced)
        return parse(forced, "FASTCOMPRESS_ISA");
    Isa best = Isa::generic;
    for (Isa isa : compiled_isas())
        if (isa_supported(isa)) best = isa;
    return best;
}

std::atomic<const KernelTable*>& chosen() {
    static std::atomic<const KernelTable*> table{nullptr};
    return table;
}

}  // namespace

const ElementwiseTable& elementwise_table(Isa isa) {
#if defined(FASTCOMPRESS_HAVE_AVX512)
    if (isa >= Isa::avx512) return kElementwise_avx512;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX2)
    if (isa >= Isa::avx2) return kElementwise_avx2;
#endif
    (void)isa;
    return kElementwise_generic;
}

namespace {

const SparseKernel* sparse_integer(Isa isa) {
    switch (isa) {
#if defined(FASTCOMPRESS_HAVE_AVX2)
        case Isa::avx2:
            return kSparseInteger_avx2;
#endif
#if defined(FASTCOMPRESS_HAVE_AVXVNNI)
        case Isa::avxvnni:
            return kSparseInteger_avxvnni;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512)
        case Isa::avx512:
            return kSparseInteger_avx512;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512VNNI)
        case Isa::avx512vnni:
        case Isa::amxint8:  // blocks are too small for AMX
            return kSparseInteger_avx512vnni;
#endif
        default:
            return kSparseInteger_generic;
    }
}

}  // namespace

SparseTable sparse_table(Isa isa) {
    const SparseKernel* integer = sparse_integer(isa);
#if defined(FASTCOMPRESS_HAVE_AVX512)
    if (isa >= Isa::avx512) return {integer, kSparseReal_avx512, kInterleave_avx512};
#endif
#if defined(FASTCOMPRESS_HAVE_AVX2)
    if (isa >= Isa::avx2) return {integer, kSparseReal_avx2, kInterleave_avx2};
#endif
    return {integer, kSparseReal_generic, kInterleave_generic};
}

UnpackFunction nibble_unpacker(Isa isa) {
#if defined(FASTCOMPRESS_HAVE_AVX512)
    if (isa >= Isa::avx512) return kUnpackNibbles_avx512;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX2)
    if (isa >= Isa::avx2) return kUnpackNibbles_avx2;
#endif
    (void)isa;
    return kUnpackNibbles_generic;
}

const GroupedTable& grouped_table(Isa isa) {
    switch (isa) {
#if defined(FASTCOMPRESS_HAVE_AVX2)
        case Isa::avx2:
            return kGrouped_avx2;
#endif
#if defined(FASTCOMPRESS_HAVE_AVXVNNI)
        case Isa::avxvnni:
            return kGrouped_avxvnni;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512)
        case Isa::avx512:
            return kGrouped_avx512;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512VNNI)
        case Isa::avx512vnni:
        case Isa::amxint8:  // a tile would have to be unpacked to bytes first
            return kGrouped_avx512vnni;
#endif
        default:
            return kGrouped_generic;
    }
}

const SparseKernel* find_sparse_kernel(const KernelTable& table, DType value, int64_t block_h, int64_t block_w) {
    const auto find = [&](const SparseKernel* kernels, int count) -> const SparseKernel* {
        for (int i = 0; i < count; ++i)
            if (kernels[i].value == value && kernels[i].block_h == block_h && kernels[i].block_w == block_w)
                return kernels + i;
        return nullptr;
    };
    return value == DType::s8 ? find(table.sparse.integer, kSparseIntegerKernels)
                              : find(table.sparse.real, kSparseRealKernels);
}

const W8A8Table& w8a8_table(Isa isa) {
    switch (isa) {
#if defined(FASTCOMPRESS_HAVE_AVX2)
        case Isa::avx2:
            return kW8A8_avx2;
#endif
#if defined(FASTCOMPRESS_HAVE_AVXVNNI)
        case Isa::avxvnni:
            return kW8A8_avxvnni;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512)
        case Isa::avx512:
            return kW8A8_avx512;
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512VNNI)
        case Isa::avx512vnni:
            return kW8A8_avx512vnni;
#endif
#if defined(FASTCOMPRESS_HAVE_AMXINT8)
        case Isa::amxint8:
            return kW8A8_amxint8;
#endif
        default:
            return kW8A8_generic;
    }
}

const char* isa_name(Isa isa) { return isa_name(static_cast<int32_t>(isa)); }

const char* isa_name(int32_t code) { return code >= 0 && code < kIsaCount ? kNames[code] : "unknown"; }

std::vector<Isa> compiled_isas() {
    return {
        Isa::generic,
#if defined(FASTCOMPRESS_HAVE_AVX2)
        Isa::avx2,
#endif
#if defined(FASTCOMPRESS_HAVE_AVXVNNI)
        Isa::avxvnni,
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512)
        Isa::avx512,
#endif
#if defined(FASTCOMPRESS_HAVE_AVX512VNNI)
        Isa::avx512vnni,
#endif
#if defined(FASTCOMPRESS_HAVE_AMXINT8)
        Isa::amxint8,
#endif
    };
}

const KernelTable& table_for(Isa isa) {
    static const auto tables = [] {
        std::vector<KernelTable> all;
        for (int i = 0; i < kIsaCount; ++i) {
            const Isa each = static_cast<Isa>(i);
            const W8A8Table& w = w8a8_table(each);
            // A family that multiplies tiles only (AMX) borrows the rest.
            const W8A8Table* small = w.depthwise ? nullptr : &w8a8_table(Isa::avx512vnni);
            all.push_back(combine(each, w, elementwise_table(each), small));
        }
        return all;
    }();
    return tables[static_cast<size_t>(isa)];
}

const KernelTable& current_table() {
    const KernelTable* table = chosen().load(std::memory_order_acquire);
    if (!table) {
        table = &table_for(choose());
        chosen().store(table, std::memory_order_release);
    }
    return *table;
}

void set_isa(const std::string& name) { chosen().store(&table_for(parse(name, "isa")), std::memory_order_release); }

}  // namespace fastcompress
