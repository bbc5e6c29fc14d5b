// Rows of packed weights in groups, looked up and dequantized.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "fastcompress/w4.h"
#include "parallel.h"
#include "simd/half.h"
#include "workspace.h"

namespace fastcompress {
namespace {

constexpr int64_t kSerialElements = 8192;  // fewer are done before a second thread has begun

int64_t index_at(const EmbeddingCall& call, int64_t i) {
    return call.wide ? static_cast<const int64_t*>(call.indices)[i] : static_cast<const int32_t*>(call.indices)[i];
}

void check_indices(const EmbeddingCall& call, int64_t rows) {
    for (int64_t i = 0; i < call.count; ++i)
        if (const int64_t index = index_at(call, i); index < 0 || index >= rows)
            throw std::invalid_argument("embedding_packed: indices has " + std::to_string(index) + " at place " +
                                        std::to_string(i) +
                                        ", allowed: 0 to num_embeddings - 1 = " + std::to_string(rows - 1));
}

}  // namespace

void embedding_packed(const BlobHeader& blob, const EmbeddingCall& call) {
    if (!is_grouped(blob)) throw std::invalid_argument("embedding_packed: the packed weights are not in groups");
    check_indices(call, blob.out_channels);
    const int64_t k = blob.in_channels;
    int threads = call.threads.limit > 0 ? call.threads.limit : max_threads();
    if (call.count * k < kSerialElements) threads = 1;
    if (call.threads.exactly > 0) threads = call.threads.exactly;
    threads = std::min(threads, kMaxThreads);
    const bool narrow = call.out_dtype != DType::f32;
    Workspace& workspace = Workspace::local();
    workspace.reset(narrow ? Workspace::size(static_cast<size_t>(threads * k) * sizeof(float)) : 0);
    auto* scratch = narrow ? workspace.take_array<float>(threads * k) : nullptr;
    TaskQueue rows(call.count, threads);
    parallel(threads, [&](Team& team) {
        float* const own = narrow ? scratch + team.thread() * k : nullptr;
        for (int64_t i; rows.next(team, &i);) {
            const int64_t index = index_at(call, i);
            if (!narrow) {
                dequantize_row(blob, index, static_cast<float*>(call.out) + i * k);
                continue;
            }
            dequantize_row(blob, index, own);
            auto* out = static_cast<uint16_t*>(call.out) + i * k;
            const auto round = call.out_dtype == DType::bf16 ? float_to_bf16 : float_to_f16;
            std::transform(own, own + k, out, round);
        }
    });
    workspace.trim();
}

}  // namespace fastcompress
