#include "halfv-cut.h"

#include "halfv-complaint.h"
#include "halfv-graph.h"
#include "halfv-profile.h"
#include "halfv-recurrent.h"

#include "llama-adapter.h"
#include "llama-batch.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <unordered_set>

namespace halfv {

//
// what rides beside the embedding in a picture's rows
//

static bool is_mapped(const llama_hparams & hparams) {
    const auto & to = hparams.deepstack_mapping_arr;
    return std::any_of(to.begin(), to.end(), [](int32_t i) { return i >= 0; });
}

bool deep_stack_follows(const llama_hparams & hparams, int32_t il) {
    return il < (int32_t) hparams.n_deepstack_layers && !is_mapped(hparams);
}

static const char * name_of_boundary(const llm_graph_context & graph, int32_t il) {
    const bool is_nemotron = graph.arch == LLM_ARCH_NEMOTRON_H || graph.arch == LLM_ARCH_NEMOTRON_H_MOE;
    return is_nemotron ? "nemotron_h_block_out" : deep_stack_follows(graph.hparams, il) ? "deepstack_out" : "l_out";
}

//
// watching a builder
//

class probe {
public:
    probe(const llama_hparams & hparams, const llama_memory_recurrent_context * recurrent) : hparams(hparams), recurrent(recurrent) {}

    const llama_hparams & hparams;
    const llama_memory_recurrent_context * const recurrent; // null: no layer is
    std::string fault;
    std::vector<const ggml_tensor *> weights; // in the order in which layers take them
    std::vector<bool> attends; // layer by layer
    std::vector<input_part> reads; // of the input beside the state, layer by layer
    bool centred = false; // the norm after the last one takes the mean away

    void embeddings(const ggml_tensor * t) { input = t; }
    void reads_beside(const ggml_tensor * part) { beside.insert(part); }
    void boundary(ggml_tensor * cur, int32_t il);
    void attention(const ggml_tensor * q, const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * out, int32_t il);
    void done(const llm_graph_result & res);

private:
    void fail(const std::string & why) { if (fault.empty()) { fault = why; } }
    bool visit(const ggml_tensor * root);

    int32_t layer = 0; // that is being built
    bool attended = false;
    const ggml_tensor * input = nullptr, * state = nullptr;
    std::vector<const ggml_tensor *> roots; // of this layer
    std::unordered_set<const ggml_tensor *> past, seen, beside;
};

// false where it hangs on something that the layer before did not hand on
bool probe::visit(const ggml_tensor * root) {
    std::vector<const ggml_tensor *> todo = { root };
    while (!todo.empty()) {
        const ggml_tensor * t = todo.back();
        todo.pop_back();
        if (!seen.insert(t).second) {
            continue;
        }
        if (beside.count(t) > 0) {
            reads.resize(layer + 1);
            reads[layer].add({ (uint32_t) (t->view_offs/sizeof(float)), (uint32_t) t->ne[0] });
            continue;
        }
        if (past.count(t) > 0) {
            return false;
        }
        if (t->op == GGML_OP_NONE && t->buffer) {
            weights.push_back(t);
        }
        for (const auto * src : t->src) {
            if (src) { todo.push_back(src); }
        }
    }
    return true;
}

void probe::attention(const ggml_tensor * q, const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * out, int32_t il) {
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

void probe::boundary(ggml_tensor * cur, int32_t il) {
    if (il != layer || cur->ne[0] != hparams.n_embd || cur->ne[2] != 1 || cur->ne[3] != 1) {
        fail("what leaves layer " + std::to_string(il) + " is not one state per token");
    }
    attends.push_back(attended);
    roots.push_back(cur);
    for (const auto * root : roots) {
        if (!visit(root)) {
            fail("layer " + std::to_string(il) + " takes more than the layer before it gives");
        }
    }
    // from here on there is this state alone
    past.insert(state ? state : input);
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
// cutting
//

// for what attention gives: through its output matrix, or as its values are
static ggml_tensor * stand_in(const llm_graph_context & graph, const ggml_tensor * q, const ggml_tensor * wo, int il, const ggml_tensor * v_mla) {
    const int64_t n_embd_head = v_mla ? v_mla->ne[1] : graph.hparams.n_embd_head_v(il);
    return ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, wo ? wo->ne[1] : n_embd_head*q->ne[1], graph.n_tokens);
}

static void become_view(ggml_tensor * t, ggml_tensor * of) {
    memset(t->op_params, 0, sizeof(t->op_params));
    memset(t->src, 0, sizeof(t->src));
    t->op        = GGML_OP_VIEW;
    t->src[0]    = of;
    t->view_src  = of->view_src ? of->view_src : of;
    t->view_offs = of->view_offs;
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        t->ne[i] = of->ne[i];
        t->nb[i] = of->nb[i];
    }
}

static std::vector<ggml_tensor *> nodes_of(ggml_cgraph * gf) {
    std::vector<ggml_tensor *> res(ggml_graph_n_nodes(gf));
    for (size_t i = 0; i < res.size(); ++i) { res[i] = ggml_graph_node(gf, i); }
    return res;
}

// only these nodes are left; some are there without being computed, which expanding forgets
static void keep_nodes(ggml_cgraph * gf, const std::vector<ggml_tensor *> & nodes) {
    std::vector<int32_t> flags;
    for (const auto * node : nodes) { flags.push_back(node->flags); }
    ggml_graph_clear(gf);
    for (auto * node : nodes) { ggml_build_forward_expand(gf, node); }
    for (size_t i = 0; i < nodes.size(); ++i) { nodes[i]->flags = flags[i]; }
}

static bool is_cpu(ggml_backend_dev_t device) {
    return !device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

// The same states on the device of a layer, once for all layers there: views of it would each cross on their own.
static ggml_tensor * at_layer(const llm_graph_context & graph, ggml_tensor * states, int32_t il) {
    const auto * device = as_staged(graph.mctx)->device(il);
    for (int i = 0; i < ggml_backend_sched_get_n_backends(graph.sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(graph.sched, i);
        if (ggml_backend_get_device(backend) == device) {
            states = ggml_cont(graph.ctx0, states);
            ggml_backend_sched_set_tensor_backend(graph.sched, states, backend);
            break;
        }
    }
    return states;
}

// A builder names what it makes of a part of the input: of the view that it took of the embeddings. Where there are none it
// gets that of what goes along with the states.
static void read_beside(const llm_graph_context & graph, ggml_tensor * cur) {
    const auto & cut = graph.res->halfv_cut;
    for (auto & src : cur->src) {
        if (!cut.embeddings || !src || src->view_src != cut.embeddings || src->view_offs == 0) {
            continue;
        }
        const input_part part = { (uint32_t) (src->view_offs/sizeof(float)), (uint32_t) src->ne[0] };
        if (graph.halfv_pass.probe) {
            graph.halfv_pass.probe->reads_beside(src);
        } else if (cut.carried.has(part)) {
            src = ggml_view_2d(graph.ctx0, cut.companion, part.n, src->ne[1], cut.companion->nb[1], (part.first - cut.carried.first)*sizeof(float));
        }
    }
}

void at_name(const llm_graph_context & graph, ggml_tensor * cur, const char * name, int il) {
    const auto & pass = graph.halfv_pass;
    auto & cut = graph.res->halfv_cut;
    read_beside(graph, cur);
    if (il < 0 || strcmp(name, name_of_boundary(graph, il)) != 0) {
        return;
    }
    enter_layer(graph, il + 1);
    if (!pass.is_part()) {
        return;
    }
    if (pass.probe) {
        pass.probe->boundary(cur, il);
        return;
    }
    if (il == pass.first - 1) {
        ggml_graph_clear(graph.gf);
        if (!cut.state) { take_rows(graph); }
        cut.hidden = cut.state;
        ggml_build_forward_expand(graph.gf, cut.hidden);
        if (pass.kv_only(pass.first) && as_staged(graph.mctx)->device_before() != as_staged(graph.mctx)->device(pass.first)) {
            cut.hidden = at_layer(graph, cut.hidden, pass.first);
        }
        become_view(cur, cut.hidden);
    } else if (il == pass.end(graph.n_layer) - 1 && pass.last <= graph.n_layer) {
        give_states(graph, cur);
        throw end_of_pass();
    } else if (il >= pass.first && il == pass.kv_from - 1) {
        give_states(graph, cur);
        cut.hidden = cur;
    } else if (il >= pass.first && pass.kv_only(il)) {
        keep_nodes(graph.gf, cut.kept);
        if (as_staged(graph.mctx)->device(il) != as_staged(graph.mctx)->device(il + 1)) {
            cut.hidden = at_layer(graph, cut.hidden, il + 1);
        }
        become_view(cur, cut.hidden);
    }
}

// A device gets rows with more than the embedding once: views of them would each cross on their own.
static ggml_tensor * embeddings_at_first_layer(const llm_graph_context & graph, ggml_tensor * tok_embd) {
    auto & cut = graph.res->halfv_cut;
    const int64_t width = graph.hparams.n_embd_inp();
    if (cut.asked || !graph.halfv_pass.is_part() || width == graph.n_embd || is_cpu(as_staged(graph.mctx)->device(0))) {
        return nullptr;
    }
    ggml_tensor * cur = nullptr, * rows;
    if (graph.ubatch.embd && !graph.ubatch.token) { // without embeddings of tokens beside, which would cross as well
        auto inp = std::make_unique<llm_graph_input_embd>(width);
        rows = inp->embd = ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, width, graph.n_tokens);
        ggml_set_input(rows);
        graph.res->add_input(std::move(inp));
    } else {
        cut.asked = true;
        cur  = graph.build_inp_embd(tok_embd);
        rows = graph.res->t_inp_embd->src[0];
    }
    rows = at_layer(graph, rows, 0);
    ggml_tensor * view = ggml_view_2d(graph.ctx0, rows, graph.n_embd, graph.n_tokens, rows->nb[1], 0);
    if (!cur || cur == graph.res->t_inp_embd) { cur = view; }
    graph.res->t_inp_embd = view;
    ggml_build_forward_expand(graph.gf, cur);
    return cur;
}

ggml_tensor * instead_of_embeddings(const llm_graph_context & graph, ggml_tensor * tok_embd) {
    const auto & pass = graph.halfv_pass;
    if (pass.first == 0 && !pass.probe) {
        return embeddings_at_first_layer(graph, tok_embd);
    }
    const int64_t width = graph.hparams.n_embd_inp();
    ggml_tensor * cur = ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, width, graph.n_tokens);
    graph.res->halfv_cut.embeddings = cur;
    if (pass.probe) {
        pass.probe->embeddings(cur);
    } else {
        take_rows(graph);
    }
    if (width != graph.n_embd) {
        cur = ggml_view_2d(graph.ctx0, cur, graph.n_embd, graph.n_tokens, cur->nb[1], 0);
    }
    graph.res->t_inp_embd = cur;
    return cur;
}

ggml_tensor * instead_of_attention(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * wo, int il,
                                   const ggml_tensor * v_mla) {
    const auto & pass = graph.halfv_pass;
    const bool in_range = il >= pass.first && il < pass.end(graph.n_layer);
    if (in_range && pass.kv_only(il) && !k) {
        throw end_of_pass(); // from here on layers read the caches of those before
    }
    if (!pass.is_part() || (in_range && !pass.probe)) { // layers beyond the last, of drafts, are not ours
        return nullptr;
    }
    ggml_tensor * res = stand_in(graph, q, wo, il, v_mla);
    if (pass.probe) { pass.probe->attention(q, k, v, res, il); }
    return res;
}

ggml_tensor * after_storing(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * wo, int il, const ggml_tensor * v_mla) {
    const auto & pass = graph.halfv_pass;
    if (!pass.kv_only(il)) {
        return nullptr;
    }
    if (il == pass.end(graph.n_layer) - 1) {
        throw end_of_pass();
    }
    graph.res->halfv_cut.kept = nodes_of(graph.gf);
    return stand_in(graph, q, wo, il, v_mla);
}

// Inputs are filled whether or not a pass uses them.
void finish(const llm_graph_params & params, bool ended) {
    if (!params.halfv_pass.is_part() || params.halfv_pass.probe) {
        return;
    }
    auto * ctx = params.res->get_ctx();
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (t->flags & GGML_TENSOR_FLAG_INPUT) { ggml_build_forward_expand(params.res->get_gf(), t); }
    }
    if (ended) { params.res->set_outputs(params); }
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
    if (!hparams.use_mrope() && (model.arch == LLM_ARCH_GLM4 || model.arch == LLM_ARCH_GLM4_MOE)) {
        return "this file has no positions for pictures, on which llama.cpp would abort";
    }
    return "";
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
        res.by_kind = tokens.weights != embeddings.weights;
        res.attends = tokens.attends;
        res.reads   = tokens.reads;
        res.reads.resize(std::max(tokens.reads.size(), embeddings.reads.size()));
        for (size_t il = 0; il < embeddings.reads.size(); ++il) { res.reads[il].add(embeddings.reads[il]); }
        res.centred = tokens.centred;
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

std::array<int32_t, 2> layers_asked(const llama_model & model, const halfv_profile & p) {
    const auto & found   = cuts_of(model);
    const auto & hparams = model.hparams;
    const int32_t first = found.last_that_attends(0, p.ivr_layer);
    const auto like_first = [&](int32_t il) {
        return found.attends[il] && hparams.has_kv(il) && hparams.n_head(il) == hparams.n_head(first) && hparams.n_head_kv(il) == hparams.n_head_kv(first) &&
               hparams.n_embd_head_k(il) == hparams.n_embd_head_k(first);
    };
    int32_t second = (int32_t) p.ssr_layer - 1;
    while (first >= 0 && second >= 0 && !like_first(second)) { --second; }
    return { first, second >= (int32_t) p.ivr_layer || p.ssr_layer <= p.ivr_layer ? second : -1 };
}

int32_t layer_of_cache(const llama_hparams & hparams, int32_t il) {
    return hparams.has_kv(il) ? il : hparams.n_layer_kv_from_start - (hparams.is_swa(il) ? 2 : 1); // as llama_model::create_memory has it
}

std::string unfit(const llama_model & model, const halfv_profile & p) {
    const auto & found = cuts_of(model);
    const int32_t n_layer = model.hparams.n_layer(), ivr = p.ivr_layer, ssr = p.ssr_layer;
    for (const auto & [key, layer] : { std::pair("halfv.ivr.layer", ivr), std::pair("halfv.ssr.layer", ssr) }) {
        int32_t reader = -1, from = layer;
        for (int32_t il = layer; il < n_layer; ++il) {
            if (const int32_t cache = layer_of_cache(model.hparams, il); cache < from) {
                reader = il;
                from   = cache;
                il     = cache; // those between have readers as well
            }
        }
        if (reader >= 0) {
            return complaint(key, layer, "layer " + std::to_string(reader) + " reads the cache of layer " + std::to_string(from) +
                    ", so no stage can begin between them: at most " + std::to_string(from));
        }
    }
    const auto none = [&](int32_t first, int32_t end) { return first < end && found.last_that_attends(first, end) < 0; };
    if (none(0, ivr)) {
        return complaint("halfv.ivr.layer", ivr, "no layer before it has attention");
    }
    if (none(ivr, ssr)) {
        return complaint("halfv.ssr.layer", ssr, "no layer from halfv.ivr.layer = " + std::to_string(ivr) + " up to it has attention");
    }
    if (none(ssr, n_layer)) {
        return complaint("halfv.ssr.layer", ssr, "no layer from it on has attention");
    }
    if (const auto asked = layers_asked(model, p); ssr < n_layer && p.ssr_update > 0.0f && p.ssr_update < 1.0f && asked[1] < 0) {
        return complaint("halfv.ssr.layer", ssr, "no layer from halfv.ivr.layer = " + std::to_string(ivr) + " up to it has queries and keys like layer " +
                std::to_string(asked[0]) + ", which chooses before it");
    }
    for (int32_t il = ssr; il < n_layer && p.ssr_rest == HALFV_REST_FROZEN; ++il) {
        if (found.is_recurrent(il) || !found.attends[il]) {
            return complaint("halfv.ssr.rest", "\"frozen\"", "layer " + std::to_string(il) +
                    (found.is_recurrent(il) ? " is recurrent" : " has no attention") + ", so nothing in it can be frozen: use \"dropped\"");
        }
    }
    return "";
}

const layer_cuts & cuts_of(const llama_model & model) {
    return model.halfv_profile->cuts([&]() { return find_cuts(model); });
}

} // namespace halfv
