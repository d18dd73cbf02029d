#include "halfv-heads.h"

#include "halfv-complaint.h"
#include "halfv-cut.h"
#include "halfv-graph.h"
#include "halfv-narrow.h"
#include "halfv-neighbours.h"
#include "halfv-probe.h"

#include "llama-model.h"

#include <algorithm>

namespace halfv {

int64_t groups_of(int64_t n_head_kv, float keep) {
    return std::clamp<int64_t>(n_head_kv*(double) keep + 1e-6, 1, n_head_kv);
}

static bool few_at(const staged_context * staged, int il) {
    return staged && staged->profile().heads_keep < 1.0f && il >= (int) staged->profile().heads_layer;
}

std::optional<llm_graph_qkv> few_heads(const llm_graph_context & graph, const llama_layer & layer, ggml_tensor * cur, int64_t n_embd_head_q,
                                       int64_t n_head_q, int64_t n_embd_head_k, int64_t n_head_k, int64_t n_embd_head_v, int64_t n_head_v, int il, bool reshape) {
    if (graph.halfv_pass.probe) {
        graph.halfv_pass.probe->projects(il, reshape);
        return std::nullopt;
    }
    const auto * staged = as_staged(graph.mctx);
    if (!graph.halfv_pass.narrow || !few_at(staged, il)) {
        return std::nullopt;
    }
    auto * ctx0 = graph.ctx0;
    const int64_t n_groups = groups_of(n_head_k, staged->profile().heads_keep);
    const auto project = [&](ggml_tensor * w, ggml_tensor * b, int64_t n_embd_head, int64_t n_head, const char * name) {
        const int64_t n = n_embd_head*n_head*n_groups/n_head_k;
        ggml_tensor * res = ggml_mul_mat(ctx0, ggml_view_2d(ctx0, w, w->ne[0], n, w->nb[1], 0), cur);
        if (b) { res = ggml_add(ctx0, res, ggml_view_1d(ctx0, b, n, 0)); }
        if (graph.hparams.f_clamp_kqv > 0.0f) { res = ggml_clamp(ctx0, res, -graph.hparams.f_clamp_kqv, graph.hparams.f_clamp_kqv); }
        res = ggml_reshape_3d(ctx0, ggml_pad(ctx0, res, n_embd_head*n_head - n, 0, 0, 0), n_embd_head, n_head, graph.n_tokens); // as builders know it
        graph.cb(res, name, il);
        return res;
    };
    return llm_graph_qkv{ project(layer.wq, layer.wq_b, n_embd_head_q, n_head_q, "Qcur"), project(layer.wk, layer.wk_b, n_embd_head_k, n_head_k, "Kcur"),
                          project(layer.wv, layer.wv_b, n_embd_head_v, n_head_v, "Vcur") };
}

// heads [first, first + n) of queries, keys or values, which have them in their second dimension
static ggml_tensor * heads(ggml_context * ctx0, ggml_tensor * t, int64_t first, int64_t n) {
    return n == t->ne[1] ? t : ggml_view_4d(ctx0, t, t->ne[0], n, t->ne[2], t->ne[3], t->nb[1], t->nb[2], t->nb[3], first*t->nb[1]);
}

ggml_tensor * attend(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b, ggml_tensor * mask,
                     ggml_tensor * sinks, ggml_tensor * v_mla, float kq_scale, int il, ggml_tensor *& wo) {
    auto * ctx0 = graph.ctx0;
    const auto * staged = as_staged(graph.mctx);
    const bool few  = few_at(staged, il);
    const bool near = graph.halfv_pass.near && il >= (int) staged->profile().neighbours_layer;
    const auto mha = [&](ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * mask) {
        return graph.build_attn_mha(q, k, v, kq_b, mask, sinks, v_mla, 0, kq_scale, il);
    };
    if (!few && !near) {
        return mha(q, k, v, mask);
    }
    const int64_t n_kv = k->ne[1], n_few = few ? groups_of(n_kv, staged->profile().heads_keep) : n_kv, of_group = q->ne[1]/n_kv;
    ggml_tensor * q_few = heads(ctx0, q, 0, n_few*of_group), * k_few = heads(ctx0, k, 0, n_few), * v_few = heads(ctx0, v, 0, n_few);
    if (!graph.halfv_pass.narrow) { // the other heads see no cells of pictures that have nothing there
        ggml_tensor * rest = mha(heads(ctx0, q, n_few*of_group, (n_kv - n_few)*of_group), heads(ctx0, k, n_few, n_kv - n_few),
                                 heads(ctx0, v, n_few, n_kv - n_few), graph.res->halfv_cut.attention->mask_of_rest(il));
        return ggml_concat(ctx0, mha(q_few, k_few, v_few, mask), rest, 0);
    }
    if (few) { wo = ggml_view_2d(ctx0, wo, wo->ne[0]/n_kv*n_few, wo->ne[1], wo->nb[1], 0); }
    if (!near) {
        return mha(q_few, k_few, v_few, mask);
    }
    const auto & keys = graph.res->halfv_cut.attention->neighbours(graph, il);
    ggml_tensor * res = mha(keys.blocks(ctx0, q_few), keys.gather(ctx0, k_few, false), keys.gather(ctx0, v_few, v->nb[1] > v->nb[2]), keys.mask);
    return res->ne[1] == graph.n_tokens ? res : ggml_view_2d(ctx0, res, res->ne[0], graph.n_tokens, res->nb[1], 0);
}

std::string unfit_attention(const llama_model & model, const halfv_profile & p) {
    const auto & hparams = model.hparams;
    const auto & found   = cuts_of(model);
    const int32_t n_layer = hparams.n_layer();
    const auto has_plain = [&](int32_t il) {
        return il < (int32_t) found.plain.size() && found.plain[il] && !hparams.use_alibi && hparams.swa_type == LLAMA_SWA_TYPE_NONE && !model.layers[il].attn_sinks;
    };
    for (int32_t il = p.neighbours_layer; p.neighbours_width > 0 && il < n_layer; ++il) {
        if (!has_plain(il)) {
            return complaint("halfv.neighbours.layer", p.neighbours_layer, "layer " + std::to_string(il) + " has no attention that can be confined to neighbours");
        }
    }
    for (int32_t il = p.heads_layer; p.heads_keep < 1.0f && il < n_layer; ++il) {
        const auto & l = model.layers[il];
        const std::string layer = "layer " + std::to_string(il);
        const int64_t n_kv = hparams.n_head_kv(il), d = hparams.n_embd_head_v(il);
        const auto is_whole = [&](const ggml_tensor * w, int64_t n) { return w && w->ne[1] == n; };
        if (!has_plain(il) || il >= (int32_t) found.projects.size() || !found.projects[il] || l.wqkv || l.wq_s || l.wk_s || l.wv_s || l.wo_s || l.attn_k_norm_b ||
            !is_whole(l.wq, hparams.n_head(il)*hparams.n_embd_head_k(il)) || !is_whole(l.wk, n_kv*hparams.n_embd_head_k(il)) || !is_whole(l.wv, n_kv*d) ||
            !l.wo || l.wo->ne[0] != hparams.n_head(il)*d) {
            return complaint("halfv.heads.layer", p.heads_layer, layer + " does not have queries, keys and values in matrices of their own, of which some heads can be taken");
        }
        if (n_kv < 2) {
            return complaint("halfv.heads.keep", p.heads_keep, "the heads of " + layer + " share one group of keys and values, of which no part can be taken");
        }
        const int64_t n_few = groups_of(n_kv, p.heads_keep), columns = l.wo->ne[0]/n_kv*n_few;
        if (columns % ggml_blck_size(l.wo->type) != 0) {
            return complaint("halfv.heads.keep", p.heads_keep, std::to_string(n_few) + " of " + std::to_string(n_kv) + " groups of heads of " + layer + " are " +
                    std::to_string(columns) + " columns of its output matrix, which are not whole blocks of its type " + ggml_type_name(l.wo->type));
        }
        for (const auto * w : { l.wq, l.wk, l.wv, l.wo }) {
            if (!can_be_cut(model, il, *w, w == l.wo ? columns : w->ne[0])) {
                return complaint("halfv.heads.keep", p.heads_keep, packed(*w, il));
            }
        }
    }
    return "";
}

} // namespace halfv
