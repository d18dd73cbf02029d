#include "halfv-gram.h"

#include "ggml-cpp.h"

namespace halfv {

bool device_gram(ggml_backend_t backend, const float * rows, int n, int d, std::vector<float> & gram) {
    const ggml_init_params params = { 8*ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false), nullptr, true };
    ggml_context_ptr ctx(ggml_init(params));
    if (!ctx) {
        return false;
    }
    ggml_tensor * features = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, d, n);
    ggml_tensor * product  = ggml_mul_mat(ctx.get(), features, features);
    ggml_prec_set_acc(product, GGML_PREC_F32);
    if (!ggml_backend_supports_op(backend, product)) {
        return false;
    }
    ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), 8, false);
    ggml_build_forward_expand(graph, product);

    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    if (!buffer) {
        return false;
    }
    ggml_backend_tensor_set(features, rows, 0, ggml_nbytes(features));
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return false;
    }
    gram.resize((size_t) n*n);
    ggml_backend_tensor_get(product, gram.data(), 0, ggml_nbytes(product));
    return true;
}

} // namespace halfv
