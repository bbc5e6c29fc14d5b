// torch.ops.fastcompress.embedding_packed: the CPU kernel; ops.cpp has the schema.
#include "../cpu/parallel.h"
#include "fastcompress/w4.h"
#include "tensors.h"

namespace fastcompress::bindings {
namespace {

Tensor embedding_packed_op(const Tensor& indices, const Tensor& packed, int64_t num_embeddings, int64_t embedding_dim,
                           ScalarType out_dtype) {
    const char* op = "embedding_packed";
    check_packed(packed, op);
    const BlobHeader& blob = open_blob(static_cast<const uint8_t*>(packed.data_ptr()), packed.numel());
    if (!is_grouped(blob)) refuse(op, "packed does not hold weights in groups; pack a W4Canonical or W8Canonical");
    if (num_embeddings != blob.out_channels || embedding_dim != blob.in_channels)
        refuse(op, "num_embeddings is ", num_embeddings, " and embedding_dim ", embedding_dim,
               ", the packed weights have ", blob.out_channels, " and ", blob.in_channels);
    check_cpu(indices, op, "indices");
    const ScalarType kind = indices.scalar_type();
    if (kind != ScalarType::Long && kind != ScalarType::Int)
        refuse_type(op, "indices has dtype ", dtype_text(kind), ", allowed: int32, int64");
    const Tensor at = row_major(indices);
    EmbeddingCall call;
    call.indices = at.data_ptr();
    call.wide = kind == ScalarType::Long;
    call.count = at.numel();
    call.out_dtype = kernel_dtype(out_dtype, {DType::f32, DType::bf16, DType::f16}, op, "out_dtype");
    std::vector<int64_t> sizes = sizes_of(indices);
    sizes.push_back(embedding_dim);
    Tensor out = empty(sizes, call.out_dtype);
    call.out = out.data_ptr();
    call.threads.limit = in_forked_child() ? 1 : torch_threads();
    embedding_packed(blob, call);
    return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastcompress, CPU, m) { m.impl("embedding_packed", TORCH_BOX(&embedding_packed_op)); }

}  // namespace fastcompress::bindings
