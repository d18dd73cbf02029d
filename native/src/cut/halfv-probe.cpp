#include "halfv-probe.h"

#include "halfv-complaint.h"
#include "halfv-cut.h"
#include "halfv-heads.h"
#include "halfv-narrow.h"
#include "halfv-profile.h"
#include "halfv-recurrent.h"

#include "llama-adapter.h"
#include "llama-batch.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <exception>

namespace halfv {

// false where it hangs on something that the layer before did not hand on
bool probe::visit(const ggml_tensor * root) {
    std::vector<const ggml_tensor *> todo = { root };
    while (!todo.empty()) {
        const ggml_tensor * t = todo.back();
        todo.pop_back();
        if (!seen.insert(t).second) {
            continue;
        }
        if (beside.count(t) > 0 || (t == input && state)) {
            reads.resize(layer + 1);
            reads[layer].add(t == input ? input_part{ 0, hparams.n_embd } : input_part{ (uint32_t) (t->view_offs/sizeof(float)), (uint32_t) t->ne[0] });
            continue;
        }
        if (past.count(t) > 0) {
            return false;
        }
        if (t->op == GGML_OP_NONE && t->buffer) {
            weights.push_back(t);
        }
        if (layer == 0 && t->op == GGML_OP_SCALE && (t->src[0] == input || t->src[0]->view_src == input)) {
            memcpy(&scale, t->op_params, sizeof(scale));
        }
        for (const auto * src : t->src) {
            if (src) { todo.push_back(src); }
        }
    }
    return true;
}

void probe::attention(const ggml_tensor * q, const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * out, int32_t il, bool is_plain) {
    plain.resize(std::max<size_t>(plain.size(), hparams.n_layer()));
    if (il >= 0 && il < (int32_t) plain.size()) { plain[il] = k && v && is_plain; }
    if (!k != !v || (!k && hparams.has_kv(il))) {
        fail("layer " + std::to_string(il) + " has a cache of an unusual form");
        return;
    }
    const auto fits = [&](const ggml_tensor * t, uint32_t n_head) {
        return t->ne[0] == hparams.n_embd_head_k(il) && t->ne[1] == n_head;
    };
    if (il != layer || attended || !fits(q, hparams.n_head(il)) || (k && !fits(k, hparams.n_head_kv(il)))) {
        fail("the queries and keys of layer " + std::to_string(il) + " have an unusual form");
    }
    attended = true;
    for (const auto * root : { q, k, v, out }) {
        if (root) { roots.push_back(root); }
    }
}

void probe::feeds(int32_t il, bool has_channels) {
    if (il >= 0 && il < (int32_t) hparams.n_layer()) {
        narrows.resize(std::max<size_t>(narrows.size(), il + 1), true);
        narrows[il] = narrows[il] && has_channels;
        fed.insert(il);
    }
}

void probe::projects(int32_t il, bool has_heads) {
    projected.resize(std::max<size_t>(projected.size(), hparams.n_layer()));
    if (il >= 0 && il < (int32_t) projected.size()) { projected[il] = has_heads; }
}

void probe::boundary(ggml_tensor * cur, int32_t il) {
    const uint32_t n = cur->ne[2];
    if (il < layer) {
        fail("what leaves layer " + std::to_string(il) + " is named twice");
    } else if (il > layer) {
        fail("its layers do not follow each other one by one");
    } else if (cur->ne[0] != hparams.n_embd || cur->ne[3] != 1 || (n > 1 && !(input && cur->ne[1] == input->ne[1])) || (layer > 0 && n != n_states)) {
        fail("what leaves layer " + std::to_string(il) + " has an unusual form");
    }
    n_states = n;
    attends.push_back(attended);
    roots.push_back(cur);
    for (const auto * root : roots) {
        if (!visit(root)) {
            fail("layer " + std::to_string(il) + " takes more than the layer before it gives");
        }
    }
    // from here on there is this state alone
    if (state) { past.insert(state); }
    past.insert(roots.begin(), roots.end());
    past.erase(cur);
    roots.clear();
    seen.clear();
    state    = cur;
    attended = false;
    ++layer;
    cur->op = GGML_OP_NONE;
    memset(cur->src, 0, sizeof(cur->src));
}

void probe::done(const llm_graph_result & res) {
    if (layer != (int32_t) hparams.n_layer() || !res.t_logits) {
        fail("its layers do not follow each other one by one");
    } else if (!visit(res.t_logits)) {
        fail("its output takes more than the last layer gives");
    }
    std::vector<const ggml_tensor *> todo = { res.t_logits };
    while (!todo.empty()) {
        const ggml_tensor * t = todo.back();
        todo.pop_back();
        centred = centred || (t && t->op == GGML_OP_NORM);
        for (int i = 0; t && t->op != GGML_OP_RMS_NORM && i < GGML_MAX_SRC; ++i) { todo.push_back(t->src[i]); }
    }
}

//
// which architectures can be cut
//

namespace {

// of a memory that can be staged
struct kind {
    std::vector<bool> recurrent;
};
thread_local bool asking = false;

llama_cparams small_cparams() {
    llama_cparams cparams = {};
    cparams.n_ctx = cparams.n_ctx_seq = cparams.n_ctx_orig_yarn = 256;
    cparams.n_batch = cparams.n_ubatch = 8;
    cparams.n_seq_max       = 1;
    cparams.rope_freq_base  = 10000.0f;
    cparams.rope_freq_scale = 1.0f;
    cparams.causal_attn     = true;
    cparams.flash_attn      = true;
    return cparams;
}

std::optional<kind> kind_of_memory(const llama_model & model) {
    const llama_memory_params params = { GGML_TYPE_F16, GGML_TYPE_F16, false, LLAMA_CONTEXT_TYPE_DEFAULT, nullptr };
    asking = true;
    std::optional<kind> res;
    try {
        delete model.create_memory(params, small_cparams());
    } catch (const kind & found) {
        res = found;
    } catch (...) {
        asking = false;
        throw;
    }
    asking = false;
    return res;
}

void watch(const llama_model & model, const llama_ubatch & ubatch, probe & seen) {
    const auto cparams = small_cparams();
    const llama_adapter_cvec  no_cvec;
    const llama_adapter_loras no_loras;
    llm_graph_result res(std::max<int64_t>(4096, 64*model.n_tensors()));
    res.reset();
    llm_graph_params params = {
        /*.arch        =*/ model.arch,
        /*.hparams     =*/ model.hparams,
        /*.cparams     =*/ cparams,
        /*.ubatch      =*/ ubatch,
        /*.gtype       =*/ LLM_GRAPH_TYPE_DEFAULT,
        /*.sched       =*/ nullptr,
        /*.backend_cpu =*/ nullptr,
        /*.cvec        =*/ &no_cvec,
        /*.loras       =*/ &no_loras,
        /*.mctx        =*/ nullptr,
        /*.cross       =*/ nullptr,
        /*.prec_policy =*/ nullptr,
        /*.samplers    =*/ {},
        /*.n_outputs   =*/ 1,
        /*.cb          =*/ nullptr,
        /*.res         =*/ &res,
    };
    params.halfv_pass.probe = &seen;
    model.build_graph(params);
    seen.done(res);
}

std::string feature_refusal(const llama_model & model) {
    const auto & hparams = model.hparams;
    if (model.layers.empty()) {
        return "only its vocabulary is loaded";
    }
    if (llama_model_is_recurrent(&model)) {
        return "all its layers are recurrent";
    }
    if (model.arch == LLM_ARCH_MINIMAX_01) {
        return "its recurrent layers count positions, and pruned tokens leave gaps in them";
    }
    if (llama_model_has_encoder(&model) || !llama_model_has_decoder(&model)) {
        return "it is not a decoder alone";
    }
    if (hparams.n_layer() == 0) {
        return "it has no layers but those that draft for another model"; // without which its builder ends the process
    }
    if (!hparams.use_mrope() && (model.arch == LLM_ARCH_GLM4 || model.arch == LLM_ARCH_GLM4_MOE)) {
        return "this file has no positions for pictures, on which llama.cpp would abort";
    }
    return "";
}

// as build_inp_embd has it
float scale_of_file(const llama_hparams & hparams, bool is_text) {
    return hparams.f_embedding_scale != 0.0f && (is_text || hparams.n_deepstack_layers == 0) ? hparams.f_embedding_scale : 1.0f;
}

layer_cuts find_cuts(const llama_model & model) {
    layer_cuts res;
    try {
        res.refusal = feature_refusal(model);
        if (!res.refusal.empty()) {
            return res;
        }
        const auto kind = kind_of_memory(model);
        if (!kind) {
            res.refusal = "its memory is neither a KV cache nor one with recurrent layers";
            return res;
        }
        res.recurrent = kind->recurrent;
        std::optional<recurrent_states> recurrent;
        std::optional<llama_memory_recurrent_context> states;
        if (!res.recurrent.empty()) {
            recurrent.emplace(model, small_cparams(), [&](int32_t il) { return res.is_recurrent(il); });
            states.emplace(&recurrent->memory);
        }
        llama_batch_allocr balloc(model.hparams.n_pos_per_embd());
        llama_ubatch ubatch = balloc.ubatch_reserve(2, 1);
        probe tokens(model.hparams, states ? &*states : nullptr), embeddings(model.hparams, states ? &*states : nullptr);
        watch(model, ubatch, tokens);

        std::vector<float> values(2*model.hparams.n_embd_inp());
        ubatch.token = nullptr;
        ubatch.embd  = values.data();
        watch(model, ubatch, embeddings);
        res.refusal = tokens.fault.empty() ? embeddings.fault : tokens.fault;
        res.attends = tokens.attends;
        res.reads   = tokens.reads;
        res.reads.resize(std::max(tokens.reads.size(), embeddings.reads.size()));
        for (size_t il = 0; il < embeddings.reads.size(); ++il) { res.reads[il].add(embeddings.reads[il]); }
        res.by_kind = tokens.weights != embeddings.weights || res.companion(1).has({ 0, model.hparams.n_embd }); // which text scales
        res.centred = tokens.centred;
        res.n_states = tokens.n_states;
        res.scales   = { tokens.scale*scale_of_file(model.hparams, true), embeddings.scale*scale_of_file(model.hparams, false) };
        for (int32_t il = 0; il < (int32_t) tokens.narrows.size(); ++il) { res.feeds.push_back(tokens.narrows[il] && tokens.has_fed(il)); }
        res.plain    = tokens.plain;
        res.projects = tokens.projected;
        if (res.refusal.empty() && res.last_that_attends(0, model.hparams.n_layer()) < 0) {
            res.refusal = "none of its layers has attention";
        }
    } catch (const std::exception & err) {
        res.refusal = err.what();
    }
    return res;
}

} // namespace

void reached_memory(const llama_model & model, const llama_memory_i::layer_filter_cb & recurrent) {
    if (!asking) {
        return;
    }
    kind found;
    for (uint32_t il = 0; recurrent && il < model.hparams.n_layer(); ++il) { found.recurrent.push_back(recurrent(il)); }
    throw found;
}

const llama_memory_recurrent_context & recurrent_of(const probe & probe) {
    return *probe.recurrent;
}

int32_t layer_cuts::last_that_attends(int32_t first, int32_t end) const {
    int32_t il = end - 1;
    while (il >= first && !attends[il]) { --il; }
    return il >= first ? il : -1;
}

input_part layer_cuts::companion(int32_t first) const {
    input_part res;
    for (size_t il = std::max(first, 0); il < reads.size(); ++il) { res.add(reads[il]); }
    return res;
}

halfv_profile fitted(const llama_model & model, halfv_profile p) {
    const uint32_t n_layer = model.hparams.n_layer();
    while (!prunes(p, n_layer) && p.ivr_layer + 1 < p.ssr_layer && cuts_of(model).last_that_attends(0, p.ivr_layer) < 0) { ++p.ivr_layer; }
    return p;
}

std::array<int32_t, n_stages - 1> layers_asked(const llama_model & model, const halfv_profile & p) {
    const auto & found   = cuts_of(model);
    const auto & hparams = model.hparams;
    const int32_t first = found.last_that_attends(0, p.ivr_layer);
    const auto like_first = [&](int32_t il) {
        return found.attends[il] && hparams.has_kv(il) && hparams.n_head(il) == hparams.n_head(first) && hparams.n_head_kv(il) == hparams.n_head_kv(first) &&
               hparams.n_embd_head_k(il) == hparams.n_embd_head_k(first);
    };
    const auto bounds = bounds_of(p, hparams.n_layer());
    std::array<int32_t, n_stages - 1> res = { first };
    for (int s = 1; s + 1 < n_stages; ++s) {
        int32_t & il = res[s] = bounds[s + 1] - 1;
        while (il >= bounds[s] && (first < 0 || !like_first(il))) { --il; }
        if (il < bounds[s]) { il = -1; }
    }
    return res;
}

int32_t layer_of_cache(const llama_hparams & hparams, int32_t il) {
    return hparams.has_kv(il) ? il : hparams.n_layer_kv_from_start - (hparams.is_swa(il) ? 2 : 1); // as llama_model::create_memory has it
}

std::string unfit(const llama_model & model, const halfv_profile & p) {
    const auto & found = cuts_of(model);
    const int32_t n_layer = model.hparams.n_layer();
    const auto bounds = bounds_of(p, n_layer);
    const auto key_of = [](int s) { return s == 1 ? "halfv.ivr.layer" : s == 2 ? "halfv.ssr.layer" : "halfv.further.layers"; };
    const int n = 3 + p.n_further; // stages
    for (int s = 1; s < n; ++s) {
        const int32_t layer = bounds[s];
        int32_t reader = -1, from = layer;
        for (int32_t il = layer; il < n_layer; ++il) {
            if (const int32_t cache = layer_of_cache(model.hparams, il); cache < from) {
                reader = il;
                from   = cache;
                il     = cache; // those between have readers as well
            }
        }
        if (reader >= 0) {
            return complaint(key_of(s), layer, "layer " + std::to_string(reader) + " reads the cache of layer " + std::to_string(from) +
                    ", so no stage can begin between them: at most " + std::to_string(from));
        }
    }
    const auto asked = layers_asked(model, p);
    for (int s = 0; s < n; ++s) {
        if (bounds[s] == bounds[s + 1] || found.last_that_attends(bounds[s], bounds[s + 1]) >= 0) {
            continue;
        }
        return s == 0     ? complaint(key_of(1), bounds[1], "no layer before it has attention") :
               s == n - 1 ? complaint(key_of(s), bounds[s], "no layer from it on has attention") :
               complaint(key_of(s + 1), bounds[s + 1], std::string("no layer from ") + key_of(s) + " = " + std::to_string(bounds[s]) + " up to it has attention");
    }
    for (int s = 2; s < n; ++s) {
        if (bounds[s] < n_layer && is_chosen(share_of_stage(p, s)) && asked[s - 1] < 0) {
            return complaint(key_of(s), bounds[s], std::string("no layer from ") + key_of(s - 1) + " = " + std::to_string(bounds[s - 1]) +
                    " up to it has queries and keys like layer " + std::to_string(asked[0]) + ", which chooses before it");
        }
    }
    for (int32_t il = bounds[2]; il < bounds[3] && p.ssr_rest == HALFV_REST_FROZEN; ++il) {
        if (found.is_recurrent(il) || !found.attends[il]) {
            return complaint("halfv.ssr.rest", "\"frozen\"", "layer " + std::to_string(il) +
                    (found.is_recurrent(il) ? " is recurrent" : " has no attention") + ", so nothing in it can be frozen: use \"dropped\"");
        }
    }
    if (p.ivr_bias > 0.0f && model.hparams.use_alibi) {
        return complaint("halfv.ivr.bias", p.ivr_bias, "the model's masks hold distances, which each head weighs by its own: it must be 0");
    }
    const std::string channels = unfit_channels(model, p);
    return channels.empty() ? unfit_attention(model, p) : channels;
}

const layer_cuts & cuts_of(const llama_model & model) {
    return model.halfv_profile->cuts([&]() { return find_cuts(model); });
}

} // namespace halfv
