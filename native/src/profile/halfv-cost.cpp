#include "halfv-cost.h"

#include "halfv-cut.h"
#include "halfv-heads.h"
#include "halfv-narrow.h"
#include "halfv-neighbours.h"
#include "halfv-profile.h"
#include "halfv-selection.h"

#include "llama-model.h"

#include <algorithm>
#include <initializer_list>

namespace halfv {

static double weights(std::initializer_list<const ggml_tensor *> tensors) {
    double n = 0;
    for (const auto * t : tensors) {
        if (t) { n += ggml_nelements(t); }
    }
    return n;
}

// the matrices of a recurrent layer, and what its states take: to decay, to add to and to read
static double recurrent_work(const llama_model & model, int32_t il) {
    const auto & l = model.layers[il];
    const auto & hparams = model.hparams;
    return 2*weights({ l.wqkv, l.wqkv_gate, l.ssm_in, l.ssm_x, l.ssm_dt, l.ssm_out, l.ssm_alpha, l.ssm_beta, l.ssm_beta_alpha, l.ssm_f_a, l.ssm_f_b,
                       l.ssm_g_a, l.ssm_g_b, l.shortconv.in_proj, l.shortconv.out_proj }) + 6.0*hparams.n_embd_s() + 2.0*hparams.n_embd_r();
}

cost_model::cost_model(const llama_model & model) : head(2*weights({ model.output })), n_embd(model.hparams.n_embd) {
    const auto & hparams = model.hparams;
    const auto & kinds   = cuts_of(model);
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        const auto & l = model.layers[il];

        // of the experts, only those in use are paid for
        const double experts = l.ffn_gate_inp ? (double) hparams.n_expert_used(il)/hparams.n_expert : 0;
        const bool   attends = kinds.attends.size() <= il || kinds.attends[il];
        const double q_width = !attends ? 0.0 : (double) hparams.n_head(il)*hparams.n_embd_head_k(il);
        const double kv      = !attends || !hparams.has_kv(il) ? 0.0 : 2.0*hparams.n_embd*(hparams.n_embd_k_gqa(il) + hparams.n_embd_v_gqa(il));
        const double q       = 2.0*hparams.n_embd*q_width;

        layers.push_back({
            /*.linear      =*/ q + kv + (kinds.is_recurrent(il) ? recurrent_work(model, il) : 0.0) +
                               2*weights({ l.wo, l.ffn_up, l.ffn_gate, l.ffn_down, l.ffn_gate_inp, l.per_layer_inp_gate, l.per_layer_proj, l.laurel_l, l.laurel_r }) +
                               2*experts*weights({ l.ffn_up_exps, l.ffn_gate_exps, l.ffn_down_exps }),
            /*.kv          =*/ kv,
            /*.pair        =*/ !attends ? 0.0 : 2.0*hparams.n_head(il)*(hparams.n_embd_head_k(il) + hparams.n_embd_head_v(il)),
            /*.query_width =*/ q_width,
            /*.heads       =*/ q + kv + 2*weights({ l.wo }),
            /*.n_groups    =*/ hparams.n_head_kv(il),
            /*.feed        =*/ 2*weights({ l.ffn_up, l.ffn_gate, l.ffn_down }),
            /*.down        =*/ l.ffn_down,
        });
    }
    if (!layers.empty()) { // whose feed-forward only those tokens go through that give an output
        const auto & l = model.layers[layers.size() - 1];
        const double experts = l.ffn_gate_inp ? (double) hparams.n_expert_used(layers.size() - 1)/hparams.n_expert : 0;
        const double ffn = 2*weights({ l.ffn_up, l.ffn_gate, l.ffn_down, l.ffn_gate_inp }) + 2*experts*weights({ l.ffn_up_exps, l.ffn_gate_exps, l.ffn_down_exps });
        layers.back().linear -= ffn;
        layers.back().feed = 0;
        head += ffn;
    }
}

double cost_model::span(int32_t first, int32_t last, uint64_t n, uint64_t before) const {
    const double pairs = (double) n*before + 0.5*n*(n + 1);
    double flops = 0;
    for (int32_t il = first; il < last; ++il) {
        flops += n*layers[il].linear + pairs*layers[il].pair;
    }
    return flops;
}

narrow_tokens::narrow_tokens(const halfv_profile & p, uint64_t count, uint64_t n_text, uint64_t n_before) {
    for (uint64_t i = 1; narrows(p) && i <= count; ++i) { add(n_text + n_before + i, n_text + std::min(n_before + i, neighbours_of(p.neighbours_width))); }
}

double cost_model::heads_spared(const halfv_profile & p, int32_t il) const {
    const auto & layer = layers[il];
    return p.heads_keep < 1.0f && il >= (int32_t) p.heads_layer && layer.n_groups > 0 ? 1.0 - (double) groups_of(layer.n_groups, p.heads_keep)/layer.n_groups : 0.0;
}

double cost_model::narrowed(const halfv_profile & p, int32_t first, int32_t last, const narrow_tokens & tokens) const {
    double flops = 0;
    for (int32_t il = first; narrows(p) && il < last; ++il) {
        const auto & layer = layers[il];
        if (layer.down && p.ffn_keep < 1.0f && il >= (int32_t) p.ffn_layer) {
            flops += tokens.n*layer.feed*(1.0 - (double) channels_of(*layer.down, p.ffn_keep)/layer.down->ne[0]);
        }
        const double spared = heads_spared(p, il);
        const bool   near   = p.neighbours_width > 0 && il >= (int32_t) p.neighbours_layer;
        flops += tokens.n*layer.heads*spared + layer.pair*(tokens.pairs - (near ? tokens.near_pairs : tokens.pairs)*(1.0 - spared));
    }
    return flops;
}

double cost_model::kv_only(const halfv_profile & p, int32_t first, int32_t last, uint64_t n, uint64_t n_narrow) const {
    double flops = 0;
    for (int32_t il = first; il < last; ++il) {
        flops += (n - n_narrow*heads_spared(p, il))*layers[il].kv;
    }
    return flops;
}

double cost_model::queries(const halfv_profile & p, int32_t il, uint64_t n, uint64_t n_narrow) const {
    return 2.0*(n - n_narrow*heads_spared(p, il))*n_embd*layers[il].query_width;
}

void cost_model::prompt(const halfv_profile & p, uint64_t n_before, uint64_t n_visual, uint64_t n_after, double & dense, double & spent) const {
    const int32_t ivr = p.ivr_layer, ssr = p.ssr_layer, n_layer = layers.size();
    const auto bounds = bounds_of(p, n_layer);
    dense = spent = outputs(1) + span(0, n_layer, n_visual + n_after, n_before);
    if (!prunes(p, n_layer) || n_visual < p.min_visual_tokens) {
        return;
    }
    const uint64_t kept    = p.ivr_keep < 1.0f ? std::max(1, quota(n_visual, p.ivr_keep)) : n_visual;
    const uint64_t anchors = quota(kept, p.ivr_anchors);
    const bool     asks    = ssr < n_layer && p.ssr_update < 1.0f;
    const uint64_t deep    = asks ? std::min<uint64_t>(kept, quota(n_visual, p.ssr_update)) : kept;
    const uint64_t frozen  = asks && p.ssr_rest == HALFV_REST_FROZEN ? kept - deep : 0;

    // the last layer of stage II is run in part, as prefill::settle does where those that it drops are known before its end
    const bool    split  = asks && p.ssr_rest == HALFV_REST_DROPPED && p.ssr_update < p.ivr_keep && ssr - ivr > 1 && layers[ssr - 1].kv > 0;
    const auto     asked  = [&](int32_t il) { while (il > 0 && layers[il].kv == 0) { --il; } return il; }; // the last with attention
    const int32_t begin3 = ssr - split;

    spent = outputs(1) + span(0, ivr, n_visual + n_after, n_before) + span(ivr, begin3, kept + n_after, n_before) +
            kv_only(p, ssr, bounds[3], frozen, frozen) + span(ssr, bounds[3], deep + n_after, n_before + frozen) -
            narrowed(p, ivr, begin3, { p, kept, n_before, 0 }) - narrowed(p, ssr, bounds[3], { p, deep, n_before, frozen });
    if (split) {
        spent += kv_only(p, begin3, ssr, kept + n_after, kept) + (p.ssr_update > 0.0f ? queries(p, begin3, kept + n_after, kept) : 0) +
                 span(begin3, ssr, deep + n_after, n_before + kept - deep) - narrowed(p, begin3, ssr, { p, deep, n_before, kept - deep });
    }
    if (kept < n_visual) {
        const uint64_t n_ask = p.ivr_query == HALFV_QUERY_QUESTION ? std::max<uint64_t>(1, n_after) : 1;
        spent += (anchors > 0 ? n_ask*scores(n_visual, asked(ivr - 1)) : 0) + cover(n_visual, kept);
    }
    const auto counted = [&](uint64_t n, uint64_t k) { return p.ivr_bias > 0.0f && kept < n_visual ? count(n, k) : 0; };
    spent += counted(n_visual, kept);
    if (asks && deep > 0) {
        spent += scores(kept, asked(ssr - 1)) + (p.ssr_rest == HALFV_REST_FROZEN ? 0 : counted(kept, deep));
    }
    uint64_t left = deep;
    for (int s = 3; s < n_stages && bounds[s] < n_layer; ++s) {
        const float share = share_of_stage(p, s);
        const uint64_t stays = share < 1.0f ? std::min<uint64_t>(left, quota(n_visual, share)) : left;
        if (left > 0 && stays > 0 && is_chosen(share)) { spent += scores(left, asked(bounds[s] - 1)) + counted(left, stays); }
        spent += span(bounds[s], bounds[s + 1], stays + n_after, n_before) - narrowed(p, bounds[s], bounds[s + 1], { p, stays, n_before, 0 });
        left = stays;
    }
}

} // namespace halfv
