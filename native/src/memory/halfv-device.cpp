#include "halfv-device.h"

#include <algorithm>

namespace halfv {

namespace {

device_graph new_graph(const state_store & rows) {
    constexpr int n_max = 1024;
    const ggml_init_params params = { n_max*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_max, false), nullptr, true };
    device_graph res;
    res.device = ggml_backend_buft_get_device(rows.buffer_type());
    res.context.reset(ggml_init(params));
    res.graph = ggml_new_graph_custom(res.context.get(), n_max, false);
    return res;
}

ggml_tensor * input(ggml_context * ctx, ggml_type type, int64_t n) {
    ggml_tensor * res = ggml_new_tensor_1d(ctx, type, n);
    ggml_set_input(res);
    return res;
}

void output(device_graph & g, ggml_tensor * tensor, size_t at) {
    ggml_set_output(tensor);
    ggml_build_forward_expand(g.graph, tensor);
    g.outputs.push_back({ tensor, at });
}

ggml_tensor * some(ggml_context * ctx, ggml_tensor * ids, int first, int n) {
    return ggml_view_1d(ctx, ids, n, first*sizeof(int32_t));
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

// of states of length 1
parts features(device_graph & g, const state_store & hidden, int d, int first, int n) {
    ggml_context * ctx = g.context.get();
    ggml_tensor * x = ggml_get_rows(ctx, hidden.tensor(), some(ctx, g.ids, first, n));
    if (d < (int) hidden.width) {
        x = ggml_view_2d(ctx, x, d, n, x->nb[1], 0);
    }
    const parts res(ctx, ggml_l2_norm(ctx, ggml_mul(ctx, x, g.norm), 1e-12f));
    ggml_build_forward_expand(g.graph, res.low);
    return res;
}

} // namespace

// Stripe by stripe, so that only the results are as large as n: states of 4096 tokens, split in two, would take 120 MB.
device_graph similarities_graph(const state_store & hidden, int d, int n) {
    device_graph g = new_graph(hidden);
    ggml_context * ctx = g.context.get();
    g.ids  = input(ctx, GGML_TYPE_I32, n);
    g.norm = input(ctx, GGML_TYPE_F32, d);

    const gram_layout layout = similarities_layout(n);
    for (int s = 0; s*gram_stripe < n; ++s) {
        const int begin = s*gram_stripe, end = std::min(n, begin + gram_stripe);
        const parts stripe = features(g, hidden, d, begin, end - begin);
        for (int b = begin/gram_block; b*gram_block < n; ++b) {
            const int first = b*gram_block, n_rows = layout.rows_of(b);
            const parts block = first < end ? stripe.rows(ctx, first - begin, n_rows) : features(g, hidden, d, first, n_rows);
            output(g, product(ctx, stripe.rows(ctx, 0, layout.width(b, s)), block), layout.tile(b, s));
        }
    }
    return g;
}

device_graph dots_graph(const state_store & keys, const state_store & queries, const std::vector<state_ref> & asking, int n, int n_head, int n_head_kv) {
    device_graph g = new_graph(keys);
    ggml_context * ctx = g.context.get();
    g.ids = input(ctx, GGML_TYPE_I32, n);

    const float   scale = 1.0f/64; // a key of half precision may be larger than what half holds
    const int64_t d     = keys.width/n_head_kv;
    ggml_tensor * all = queries.tensor();
    const size_t  row = d*sizeof(float);
    std::vector<parts> asked;
    for (const auto & query : asking) {
        ggml_tensor * q = ggml_view_3d(ctx, all, d, n_head/n_head_kv, n_head_kv, row, row*(n_head/n_head_kv), queries.row_of(query)*all->nb[1]);
        asked.emplace_back(ctx, ggml_scale(ctx, ggml_cont(ctx, q), scale));
    }
    const size_t n_all = asking.size()*n_head;

    for (int first = 0; first < n; first += dots_stripe) {
        const int n_keys = std::min(dots_stripe, n - first);
        ggml_tensor * k = ggml_reshape_3d(ctx, ggml_get_rows(ctx, keys.tensor(), some(ctx, g.ids, first, n_keys)), d, n_head_kv, n_keys);
        k = ggml_scale(ctx, ggml_cont(ctx, ggml_permute(ctx, k, 0, 2, 1, 3)), scale);
        const parts some_keys(ctx, k);
        for (size_t i = 0; i < asked.size(); ++i) {
            output(g, product(ctx, some_keys, asked[i]), n_all*first + i*n_head*n_keys);
        }
    }
    return g;
}

} // namespace halfv
