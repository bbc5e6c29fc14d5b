#include "features.h"

#if defined(FASTCOMPRESS_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastcompress {
namespace {

#if defined(FASTCOMPRESS_X86)
struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
    return r;
}

// Which register files the OS saves (XCR0).
uint64_t saved_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux hands out AMX's tile state on request only (arch_prctl ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool request_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool bit(unsigned reg, int n) { return (reg >> n) & 1u; }

CpuFeatures detect() {
    CpuFeatures f;
    const Registers one = cpuid(1, 0);
    const bool osxsave = bit(one.c, 27), avx = bit(one.c, 28);
    if (!osxsave || !avx) return f;
    const uint64_t saved = saved_state();
    const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
    const Registers seven = cpuid(7, 0), seven1 = cpuid(7, 1);
    f.avx2 = ymm && bit(seven.b, 5) && bit(one.c, 12) && bit(one.c, 29);
    f.avxvnni = f.avx2 && bit(seven1.a, 4);
    f.avx512 = f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 30) && bit(seven.b, 31);
    f.avx512vnni = f.avx512 && bit(seven.c, 11);
    f.avx512bf16 = f.avx512 && bit(seven1.a, 5);
    f.amxint8 = f.avx512vnni && tiles && bit(seven.d, 24) && bit(seven.d, 25) && request_tiles();
    f.amxbf16 = f.amxint8 && bit(seven.d, 22);
    return f;
}
#else
CpuFeatures detect() { return {}; }
#endif

}  // namespace

const CpuFeatures& cpu_features() {
    static const CpuFeatures features = detect();
    return features;
}

bool isa_supported(Isa isa) {
    const CpuFeatures& f = cpu_features();
    switch (isa) {
        case Isa::generic:
            return true;
        case Isa::avx2:
            return f.avx2;
        case Isa::avxvnni:
            return f.avxvnni;
        case Isa::avx512:
            return f.avx512;
        case Isa::avx512vnni:
            return f.avx512vnni;
        case Isa::amxint8:
            return f.amxint8;
    }
    return false;
}

}  // namespace fastcompress
