#include "halfv-device.h"

#include "halfv-selection.h"

#include <algorithm>

namespace halfv {

namespace {

device_graph new_graph() {
    constexpr int n_max = 256;
    const ggml_init_params params = { n_max*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_max, false), nullptr, true };
    device_graph res;
    res.context.reset(ggml_init(params));
    res.graph = ggml_new_graph_custom(res.context.get(), n_max, false);
    return res;
}

ggml_tensor * input(ggml_context * ctx, ggml_type type, int64_t n) {
    ggml_tensor * res = ggml_new_tensor_1d(ctx, type, n);
    ggml_set_input(res);
    return res;
}

void output(device_graph & g, ggml_tensor * tensor) {
    ggml_set_output(tensor);
    ggml_build_forward_expand(g.graph, tensor);
    g.outputs.push_back(tensor);
}

// x = high + low, each of 11 bits
struct parts {
    ggml_tensor * high, * low;

    parts(ggml_context * ctx, ggml_tensor * x) :
        high(ggml_cast(ctx, ggml_cast(ctx, x, GGML_TYPE_F16), GGML_TYPE_F32)), low(ggml_sub(ctx, x, high)) {}
    parts(ggml_tensor * high, ggml_tensor * low) : high(high), low(low) {}

    parts rows(ggml_context * ctx, int64_t first, int64_t n) const {
        const auto view = [&](ggml_tensor * t) { return ggml_view_2d(ctx, t, t->ne[0], n, t->nb[1], first*t->nb[1]); };
        return { view(high), view(low) };
    }
};

ggml_tensor * product(ggml_context * ctx, const parts & a, const parts & b) {
    ggml_tensor * res = ggml_mul_mat(ctx, a.high, b.high);
    res = ggml_add(ctx, res, ggml_mul_mat(ctx, a.high, b.low));
    return ggml_add(ctx, res, ggml_mul_mat(ctx, a.low, b.high));
}

} // namespace

device_graph similarities_graph(const state_store & hidden, int n) {
    device_graph g = new_graph();
    ggml_context * ctx = g.context.get();
    g.ids  = input(ctx, GGML_TYPE_I32, n);
    g.norm = input(ctx, GGML_TYPE_F32, hidden.width);

    ggml_tensor * x = ggml_mul(ctx, ggml_get_rows(ctx, hidden.tensor(), g.ids), g.norm);
    const parts all(ctx, ggml_l2_norm(ctx, x, 1e-12f));
    for (int first = 0; first < n; first += gram_block) {
        const int end = std::min(n, first + gram_block);
        output(g, product(ctx, all.rows(ctx, 0, end), all.rows(ctx, first, end - first)));
    }
    return g;
}

device_graph dots_graph(const state_store & keys, const state_store & queries, const state_ref & query, int n, int n_head, int n_head_kv) {
    device_graph g = new_graph();
    ggml_context * ctx = g.context.get();
    g.ids = input(ctx, GGML_TYPE_I32, n);

    const float   scale = 1.0f/64; // a key of half precision may be larger than what half holds
    const int64_t d     = keys.width/n_head_kv;
    ggml_tensor * k = ggml_reshape_3d(ctx, ggml_get_rows(ctx, keys.tensor(), g.ids), d, n_head_kv, n);
    k = ggml_scale(ctx, ggml_cont(ctx, ggml_permute(ctx, k, 0, 2, 1, 3)), scale);

    ggml_tensor * all = queries.tensor();
    const size_t  row = d*sizeof(float);
    ggml_tensor * q = ggml_view_3d(ctx, all, d, n_head/n_head_kv, n_head_kv, row, row*(n_head/n_head_kv), queries.row_of(query)*all->nb[1]);
    q = ggml_scale(ctx, ggml_cont(ctx, q), scale);

    output(g, product(ctx, parts(ctx, k), parts(ctx, q)));
    return g;
}

} // namespace halfv
