#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "dispatch.h"
#include "fastcompress/w8a8.h"
#include "parallel.h"

namespace fastcompress {
namespace {

constexpr float kSmallestScale = 0x1p-100f;
constexpr int64_t kSerialElements = 1 << 15;  // below this a second thread costs more than it saves

int threads_for(int requested, int64_t elements) {
    const int threads = requested > 0 ? requested : max_threads();
    return elements < kSerialElements ? 1 : std::min(threads, kMaxThreads);
}

}  // namespace

TokenParameters token_parameters(const KernelTable& table, const void* row, DType dtype, int64_t columns,
                                 bool symmetric) {
    float lo = 0.0f, hi = 0.0f;
    if (!table.range(row, dtype, columns, &lo, &hi)) return {std::numeric_limits<float>::quiet_NaN(), 0.0f, 0, false};
    if (symmetric) {
        const float scale = std::max(std::max(hi, -lo) * (1.0f / 127.0f), kSmallestScale);
        return {scale, 1.0f / scale, 128, true};  // |x * inverse| rounds to at most 127: q lies in [1, 255] by itself
    }
    const float scale = std::max(hi * (1.0f / 255.0f) - lo * (1.0f / 255.0f), kSmallestScale);
    const float inverse = 1.0f / scale;
    const float zero = std::nearbyint(-lo * inverse);
    return {scale, inverse, static_cast<int32_t>(std::min(255.0f, std::max(0.0f, zero))), true};
}

void quantize_token(const KernelTable& table, const void* row, DType dtype, int64_t columns, bool symmetric,
                    uint8_t* out, float* scale, int32_t* zero_point) {
    const TokenParameters p = token_parameters(table, row, dtype, columns, symmetric);
    *scale = p.scale;
    *zero_point = p.zero_point;
    if (p.finite) {
        table.quantize(row, dtype, columns, p.inverse_scale, p.zero_point, false, out);
    } else {
        std::memset(out, 0, static_cast<size_t>(columns));
    }
}

void quantize_per_tensor(const void* x, DType x_dtype, int64_t count, float scale, int32_t zero_point, DType out_dtype,
                         uint8_t* out, int threads) {
    const int32_t qmin = out_dtype == DType::u8 ? 0 : -128;
    if (!(std::isnormal(scale) && scale > 0))
        throw std::invalid_argument("quantize_per_tensor: scale must be a positive, normal, finite float32");
    if (zero_point < qmin || zero_point > qmin + 255)
        throw std::invalid_argument("quantize_per_tensor: zero_point " + std::to_string(zero_point) +
                                    " is outside the output type's range [" + std::to_string(qmin) + ", " +
                                    std::to_string(qmin + 255) + "]");
    const KernelTable& table = current_table();
    const float inverse = 1.0f / scale;
    constexpr int64_t kChunk = 1 << 14;
    const int team_size = threads_for(threads, count);
    TaskQueue queue(ceil_div(count, kChunk), team_size);
    parallel(team_size, [&](Team& team) {
        for (int64_t task; queue.next(team, &task);) {
            const int64_t begin = task * kChunk;
            table.quantize(row_at(x, x_dtype, begin), x_dtype, std::min(kChunk, count - begin), inverse, zero_point,
                           out_dtype == DType::s8, out + begin);
        }
    });
}

void quantize_per_token(const void* x, DType x_dtype, int64_t rows, int64_t columns, bool symmetric, uint8_t* out,
                        float* scale, int32_t* zero_point, int threads) {
    const KernelTable& table = current_table();
    const int team_size = threads_for(threads, rows * columns);
    TaskQueue queue(rows, team_size);
    parallel(team_size, [&](Team& team) {
        for (int64_t row; queue.next(team, &row);)
            quantize_token(table, row_at(x, x_dtype, row * columns), x_dtype, columns, symmetric, out + row * columns,
                           scale + row, zero_point + row);
    });
}

}  // namespace fastcompress
