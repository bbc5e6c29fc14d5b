// What the parts of the C++ test share.
#pragma once

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

inline std::mt19937& generator() {
    static std::mt19937 numbers(20240521);
    return numbers;
}

inline int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator()); }

inline std::vector<uint8_t> random_bytes(size_t count) {
    std::vector<uint8_t> bytes(count);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random_int(0, 255));
    return bytes;
}

inline int& failures() {
    static int count = 0;
    return count;
}

inline void expect(bool ok, const char* isa, const char* what) {
    if (ok) return;
    ++failures();
    std::fprintf(stderr, "FAILED %s: %s\n", isa, what);
}

// block_sparse_test.cpp
void check_block_sparse(const char* isa, int threads);

// grouped_test.cpp
void check_grouped(const char* isa, int threads);

// chain_test.cpp
void check_chain(const char* isa, int threads);
