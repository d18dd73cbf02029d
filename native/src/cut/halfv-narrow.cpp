#include "halfv-narrow.h"

#include "halfv-complaint.h"
#include "halfv-cut.h"
#include "halfv-graph.h"
#include "halfv-probe.h"

#include "llama-adapter.h"
#include "llama-model.h"

#include <algorithm>

namespace halfv {

int64_t channels_of(const ggml_tensor & down, float keep) {
    const int64_t block = std::max<int64_t>(ggml_blck_size(down.type), 32);
    const int64_t n = (int64_t) (down.ne[0]*(double) keep + 1e-6)/block*block;
    return std::min(down.ne[0], std::max(n, block));
}

static ggml_tensor * first_rows(ggml_context * ctx, ggml_tensor * t, int64_t n) {
    return t && t->ne[1] > 1 ? ggml_view_2d(ctx, t, t->ne[0], n, t->nb[1], 0) : t ? ggml_view_1d(ctx, t, n, 0) : nullptr;
}

void narrow_ffn(const llm_graph_context & graph, int il, ggml_tensor *& up, ggml_tensor *& up_b, ggml_tensor *& gate, ggml_tensor *& gate_b,
                ggml_tensor *& down, bool is_scaled) {
    const auto & pass = graph.halfv_pass;
    const bool has_channels = up && down && !is_scaled && up->ne[1] == down->ne[0] && (!gate || gate->ne[1] == down->ne[0]);
    if (pass.probe) {
        pass.probe->feeds(il, has_channels);
        return;
    }
    if (!pass.narrow || !has_channels) {
        return;
    }
    const auto & p = as_staged(graph.mctx)->profile();
    if (p.ffn_keep == 1.0f || il < (int) p.ffn_layer) {
        return;
    }
    const int64_t n = channels_of(*down, p.ffn_keep);
    up     = first_rows(graph.ctx0, up, n);
    up_b   = first_rows(graph.ctx0, up_b, n);
    gate   = first_rows(graph.ctx0, gate, n);
    gate_b = first_rows(graph.ctx0, gate_b, n);
    down   = ggml_view_2d(graph.ctx0, down, n, down->ne[1], down->nb[1], 0);
}

bool can_be_cut(const llama_model & model, int32_t il, const ggml_tensor & matrix, int64_t n) {
    if (!matrix.buffer) { // not loaded
        return true;
    }
    auto * type = ggml_backend_buffer_get_type(matrix.buffer);
    if (ggml_backend_buft_is_host(type)) {
        return true;
    }
    auto * device = model.dev_layer(il);
    if (!device || type != ggml_backend_dev_buffer_type(device)) { // packed for one kind of product
        return false;
    }
    const ggml_init_params params = { 4*ggml_tensor_overhead(), nullptr, true };
    const ggml_context_ptr ctx(ggml_init(params));
    ggml_tensor * part = ggml_view_2d(ctx.get(), const_cast<ggml_tensor *>(&matrix), n, matrix.ne[1], matrix.nb[1], 0);
    part->buffer = matrix.buffer;
    return ggml_backend_dev_supports_op(device, ggml_mul_mat(ctx.get(), part, ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, 32)));
}

std::string packed(const ggml_tensor & matrix, int32_t il) {
    return "the weights of layer " + std::to_string(il) + " are in memory of the kind " + ggml_backend_buft_name(ggml_backend_buffer_get_type(matrix.buffer)) +
           ", in which rows cannot be cut: load the model with use_extra_bufts = false (--no-repack)";
}

std::string unfit_channels(const llama_model & model, const halfv_profile & p) {
    const auto & feeds = cuts_of(model).feeds;
    for (int32_t il = p.ffn_layer; p.ffn_keep < 1.0f && il < (int32_t) model.hparams.n_layer(); ++il) {
        const std::string layer = "layer " + std::to_string(il);
        const auto * down = model.layers[il].ffn_down;
        if (il >= (int32_t) feeds.size() || !feeds[il] || !down || model.layers[il].ffn_gate_inp) {
            return complaint("halfv.ffn.layer", p.ffn_layer, layer + " has no feed-forward network whose channels can be cut");
        }
        if (!can_be_cut(model, il, *down, channels_of(*down, p.ffn_keep))) {
            return complaint("halfv.ffn.keep", p.ffn_keep, packed(*down, il));
        }
    }
    return "";
}

} // namespace halfv
