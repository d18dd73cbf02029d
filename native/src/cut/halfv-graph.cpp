#include "halfv-graph.h"
#include "halfv-cut.h"
#include "halfv-mask.h"

#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

namespace halfv {

const staged_context * as_staged(const llama_memory_context_i * mctx) {
    return dynamic_cast<const staged_context *>(mctx);
}

llm_graph_params with_pass(llm_graph_params params) {
    const auto * staged = as_staged(params.mctx);
    if (!staged) {
        return params;
    }
    params.halfv_pass = staged->pass();
    if (const auto causal = staged->causal()) {
        params.cparams.causal_attn = *causal;
    }
    if (params.halfv_pass.is_part()) {
        // a few layers have no outputs but the rows that ask for logits, whatever the client has set its context to give
        auto & cparams = params.cparams;
        cparams.embeddings = cparams.embeddings_nextn = false;
        cparams.embeddings_layer_inp.assign(cparams.embeddings_layer_inp.size(), false);

        const int8_t * output = params.ubatch.output;
        params.n_outputs = params.halfv_pass.ends_early(params.hparams.n_layer()) ? 0 :
            std::count_if(output, output + params.ubatch.n_tokens, [](int8_t o) { return o != 0; });
    }
    return params;
}

template <typename T>
static int stage_of(const per_stage<T> & stages, const staged_context & staged, int il) {
    for (int s = 0; s < n_stages; ++s) {
        if (stages[s] && il < staged.bounds()[s + 1]) {
            return s;
        }
    }
    GGML_ABORT("halfv: layer %d is in no stage of this graph", il);
}

// The largest tensors of a long context: n_kv times n_ubatch. The mask that each stage has made for itself stays out of the graph.
template <typename T>
static void share_mask(ggml_context * ctx0, per_stage<T> & stages, const staged_context & staged) {
    T * first = nullptr;
    for (auto & stage : stages) {
        if (!stage || !staged.one_mask()) {
            continue;
        }
        if (!first) {
            first = stage.get();
            continue;
        }
        ggml_tensor * mask = first->self_kq_mask;
        ggml_tensor * own  = stage->self_kq_mask;
        if (staged.is_reserve() && own->ne[0] < mask->ne[0]) { // a smaller cache; nobody runs this graph
            mask = ggml_view_4d(ctx0, mask, own->ne[0], own->ne[1], own->ne[2], own->ne[3], own->nb[1], own->nb[2], own->nb[3], 0);
        }
        GGML_ASSERT(ggml_are_same_shape(mask, own));
        own->flags &= ~GGML_TENSOR_FLAG_INPUT; // nobody fills it
        stage->self_kq_mask = stage->self_kq_mask_cnv = mask;
    }
}

template <typename T>
static bool can_reuse_stages(per_stage<T> & stages, const staged_context * staged, bool one_mask, const graph_ends & ends, const llm_graph_params & params) {
    if (!staged || one_mask != staged->one_mask() || !(ends == staged->ends())) {
        return false;
    }
    for (int s = 0; s < n_stages; ++s) {
        if (!stages[s]) {
            continue;
        }
        auto stage_params = params;
        stage_params.mctx = staged->stage(s);
        if (!stage_params.mctx || !stages[s]->can_reuse(stage_params)) {
            return false;
        }
    }
    return true;
}

llm_graph_input_attn_kv * attn_input::at(int il) {
    const int s = stage_of(stages, *staged, il);
    return windows[s] && hparams.is_swa(il) ? windows[s].get() : stages[s].get();
}

window_input * window_inputs(const llm_graph_context & graph) {
    if (!as_staged(graph.mctx) && !graph.halfv_pass.probe) {
        return nullptr;
    }
    return (window_input *) graph.res->add_input(std::make_unique<window_input>(graph, graph.build_attn_inp_kv()));
}

const window_input * as_window(const llm_graph_input_attn_kv_iswa * inp) {
    return dynamic_cast<const window_input *>(inp);
}

ggml_tensor * attend(const llm_graph_context & graph, const window_input & inp, ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s, ggml_tensor * q,
                     ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla, float kq_scale, int il) {
    if (k) {
        return graph.build_attn(inp.all, wo, wo_b, wo_s, q, k, v, kq_b, sinks, v_mla, kq_scale, il);
    }
    if (auto * none = instead_of_attention(graph, q, nullptr, nullptr, wo, il)) {
        return none;
    }
    auto * ctx0 = graph.ctx0;
    const auto & layer = *inp.all->at(il);
    if (layer.self_k_rot) { q = llama_mul_mat_hadamard(ctx0, q, layer.self_k_rot); }
    ggml_build_forward_expand(graph.gf, q);
    ggml_tensor * cur = graph.build_attn_mha(q, layer.mctx->get_k(ctx0, il), layer.mctx->get_v(ctx0, il), kq_b, layer.get_kq_mask(), sinks, nullptr, 0,
                                             kq_scale, il);
    graph.cb(cur, "kqv_out", il);
    if (layer.self_v_rot) { cur = llama_mul_mat_hadamard(ctx0, cur, layer.self_v_rot); }
    if (wo)   { cur = graph.build_lora_mm(wo, cur, wo_s); }
    if (wo_b) { cur = ggml_add(ctx0, cur, wo_b); }
    return cur;
}

// A sliding window is a matter of the mask: the cells of a stage are those of all its layers.
void attn_input::add(ggml_context * ctx0, int s, std::unique_ptr<one> of_stage) {
    stages[s] = std::move(of_stage);
    const auto with_another_mask = [&](const char * name) {
        const auto & stage = *stages[s];
        auto res = std::make_unique<llm_graph_input_attn_kv>(hparams, cparams, stage.mctx);
        res->self_k_idxs = stage.self_k_idxs;
        res->self_v_idxs = stage.self_v_idxs;
        res->self_k_rot  = stage.self_k_rot;
        res->self_v_rot  = stage.self_v_rot;
        res->self_kq_mask = res->self_kq_mask_cnv = ggml_dup_tensor(ctx0, stage.self_kq_mask);
        ggml_set_input(res->self_kq_mask);
        ggml_set_name(res->self_kq_mask, name);
        return res;
    };
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE) { windows[s] = with_another_mask("attn_inp_kq_mask_swa"); }
    const auto & p = staged->profile();
    if (p.heads_keep < 1.0f && !staged->pass().narrow && staged->bounds()[s + 1] > (int32_t) p.heads_layer) { rests[s] = with_another_mask("attn_inp_kq_mask_rest"); }
}

void attn_input::share_masks(ggml_context * ctx0) {
    one_mask = staged->one_mask();
    share_mask(ctx0, stages,  *staged);
    share_mask(ctx0, windows, *staged);
    share_mask(ctx0, rests,   *staged);
}

// whether it was one that takes little time
static bool set_mask(ggml_tensor * mask, const staged_context & staged, int s, const llama_ubatch & ubatch, const llama_hparams & hparams, bool causal) {
    if (!causal || hparams.use_alibi || !is_one_sequence(mask, ubatch)) {
        return false;
    }
    set_causal_mask(mask, staged.cells(s, ubatch.seq_id_unq[0]), ubatch);
    return true;
}

ggml_tensor * attn_input::mask_of_rest(int il) const {
    return rests[stage_of(stages, *staged, il)]->self_kq_mask;
}

const near_keys & attn_input::neighbours(const llm_graph_context & graph, int il) {
    const int s = stage_of(stages, *staged, il);
    if (!near[s]) {
        near[s] = (const near_keys *) graph.res->add_input(std::make_unique<near_keys>(graph, *staged, s, stages[s]->self_kq_mask->type));
    }
    return *near[s];
}

// another mask without the cells of narrow pictures
void attn_input::hide_narrow(ggml_tensor * mask, const ggml_tensor * of, int s, const llama_ubatch & ubatch) const {
    GGML_ASSERT(ggml_backend_buffer_is_host(mask->buffer) && ggml_are_same_shape(mask, of)); // as what fills masks has it
    memcpy(mask->data, of->data, ggml_nbytes(mask));
    const int64_t n_stream = mask->ne[3], n_of_stream = ubatch.n_tokens/n_stream;
    for (int64_t st = 0; st < n_stream; ++st) {
        for (const uint32_t cell : staged->narrow_cells(s, ubatch.seq_id[st*n_of_stream][0])) {
            for (int64_t i = 0; i < mask->ne[1]; ++i) {
                char * at = (char *) mask->data + st*mask->nb[3] + i*mask->nb[1] + cell*mask->nb[0];
                if (mask->type == GGML_TYPE_F16) { *(ggml_fp16_t *) at = ggml_fp32_to_fp16(-INFINITY); } else { *(float *) at = -INFINITY; }
            }
        }
    }
}

void attn_input::set_input(const llama_ubatch * ubatch) {
    bool set = false, rest_set = false;
    for (int s = 0; s < n_stages; ++s) {
        const auto & stage = stages[s];
        if (!stage) {
            continue;
        }
        const bool has_mask = one_mask && set;
        const auto wanted = [&](const ggml_tensor * mask) { return !has_mask && mask->buffer; }; // of layers of both kinds a stage may have one
        ggml_tensor * mask = stage->self_kq_mask;
        if (!wanted(mask) || set_mask(mask, *staged, s, *ubatch, hparams, cparams.causal_attn)) { stage->self_kq_mask = nullptr; }
        stage->set_input(ubatch);
        stage->self_kq_mask = mask;
        if (wanted(mask)) { raise_mask(mask, *staged, s, *ubatch); }
        if (windows[s] && wanted(windows[s]->self_kq_mask)) {
            stage->mctx->set_input_kq_mask(windows[s]->self_kq_mask, ubatch, cparams.causal_attn, true);
            raise_mask(windows[s]->self_kq_mask, *staged, s, *ubatch);
        }
        if (rests[s] && rests[s]->self_kq_mask->buffer && !(one_mask && rest_set)) {
            hide_narrow(rests[s]->self_kq_mask, mask, s, *ubatch);
            rest_set = true;
        }
        set = true;
    }
}

bool attn_input::can_reuse(const llm_graph_params & params) {
    staged = as_staged(params.mctx);
    if (!can_reuse_stages(stages, staged, one_mask, ends, params)) {
        return false;
    }
    for (int s = 0; s < n_stages; ++s) {
        if (windows[s]) { windows[s]->mctx = stages[s]->mctx; }
        if (rests[s])   { rests[s]->mctx   = stages[s]->mctx; }
    }
    return true;
}

llm_graph_input_attn_k * latent_input::at(int il) {
    return stages[stage_of(stages, *staged, il)].get();
}

llm_graph_input_attn_k * latent_at(llm_graph_input_attn_k * inp, int il) {
    auto * latent = dynamic_cast<latent_input *>(inp);
    return latent ? latent->at(il) : inp;
}

void latent_input::share_masks(ggml_context * ctx0) {
    one_mask = staged->one_mask();
    share_mask(ctx0, stages, *staged);
}

void latent_input::set_input(const llama_ubatch * ubatch) {
    bool set = false;
    for (int s = 0; s < n_stages; ++s) {
        const auto & stage = stages[s];
        if (!stage) {
            continue;
        }
        stage->mctx->set_input_k_idxs(stage->self_k_idxs, ubatch);
        if (!(one_mask && set)) {
            if (!set_mask(stage->self_kq_mask, *staged, s, *ubatch, hparams, cparams.causal_attn)) {
                stage->mctx->set_input_kq_mask(stage->self_kq_mask, ubatch, cparams.causal_attn);
            }
            raise_mask(stage->self_kq_mask, *staged, s, *ubatch);
        }
        set = true;
    }
}

bool latent_input::can_reuse(const llm_graph_params & params) {
    staged = as_staged(params.mctx);
    return can_reuse_stages(stages, staged, one_mask, ends, params);
}

// states that a pass takes up where another ended
class hidden_input : public llm_graph_input_i {
public:
    explicit hidden_input(ggml_tensor * states) : states(states) {
        ggml_set_input(states);
    }
    void set_input(const llama_ubatch * ubatch) override {
        ggml_backend_tensor_set(states, ubatch->data->embd.data(), 0, ggml_nbytes(states)); // ->embd is what the builder asks
    }
    bool can_reuse(const llm_graph_params & params) override {
        return states->ne[1] == params.ubatch.n_tokens; // their width is told from the graph's ends
    }

private:
    ggml_tensor * states;
};

// the rows of a store on a device that a graph reads or writes
class store_rows : public llm_graph_input_i {
public:
    using list = std::function<std::vector<state_ref>(const struct step::io &)>;

    store_rows(const llm_graph_context & graph, const state_store & store, int64_t n, list refs) :
        ids(ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, n)), store(store), refs(std::move(refs)), staged(as_staged(graph.mctx)), whole(n == graph.n_tokens) {
        ggml_set_input(ids);
    }

    void set_input(const llama_ubatch *) override {
        std::vector<int32_t> values;
        for (const auto & ref : refs(staged->io())) { values.push_back(store.row_of(ref)); }
        GGML_ASSERT((int64_t) values.size() == ids->ne[0]);
        ggml_backend_tensor_set(ids, values.data(), 0, ggml_nbytes(ids));
    }

    bool can_reuse(const llm_graph_params & params) override {
        staged = as_staged(params.mctx);
        return staged && (!whole || ids->ne[0] == params.ubatch.n_tokens);
    }

    ggml_tensor * const ids;

private:
    const state_store & store;
    const list refs;
    const staged_context * staged;
    const bool whole; // one for each token
};

static ggml_tensor * rows_of(const llm_graph_context & graph, const state_store & store, int64_t n, store_rows::list refs) {
    auto inp = std::make_unique<store_rows>(graph, store, n, std::move(refs));
    ggml_tensor * ids = inp->ids;
    graph.res->add_input(std::move(inp));
    return ids;
}

static void put_rows(const llm_graph_context & graph, const state_store & store, ggml_tensor * values, store_rows::list refs) {
    if (values->ne[0] != store.width || values->ne[2] > 1) { // as itself where it can be: a view that crosses to another device crosses on its own
        values = ggml_reshape_2d(graph.ctx0, values, store.width, ggml_nelements(values)/store.width);
    }
    ggml_tensor * ids = rows_of(graph, store, values->ne[1], std::move(refs));
    ggml_build_forward_expand(graph.gf, ggml_set_rows(graph.ctx0, store.tensor(), values, ids));
}

void take_rows(const llm_graph_context & graph) {
    const auto & staged = *as_staged(graph.mctx);
    const auto & end    = staged.ends().in;
    auto & cut = graph.res->halfv_cut;
    ggml_tensor * rows;
    if (end.stored) {
        const auto & hidden = staged.stores_before().hidden;
        rows = ggml_get_rows(graph.ctx0, hidden.tensor(), rows_of(graph, hidden, graph.n_tokens, [](const auto & io) { return io.in; }));
    } else {
        rows = ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, staged.stores_before().hidden.n_state() + end.companion.n, graph.n_tokens);
        graph.res->add_input(std::make_unique<hidden_input>(rows));
    }
    graph.cb(rows, "inp_hidden", -1);
    cut.state = rows;
    if (end.companion.n > 0) {
        const int64_t n_state = rows->ne[0] - end.companion.n;
        const auto part = [&](int64_t n, int64_t first) { return ggml_view_2d(graph.ctx0, rows, n, graph.n_tokens, rows->nb[1], first*sizeof(float)); };
        cut.state     = ggml_cont(graph.ctx0, part(n_state, 0)); // as what leaves a layer is
        cut.companion = part(end.companion.n, n_state);
        cut.carried   = end.companion;
    }
    if (cut.state->ne[0] > graph.n_embd) { // several states, as layers hand them on
        cut.state = ggml_reshape_3d(graph.ctx0, cut.state, graph.n_embd, cut.state->ne[0]/graph.n_embd, graph.n_tokens);
        cut.state = ggml_cont(graph.ctx0, ggml_permute(graph.ctx0, cut.state, 0, 2, 1, 3));
    }
}

// what of a token's input goes along with its state
static ggml_tensor * companion_of(const llm_graph_context & graph, const input_part & part) {
    const auto & cut = graph.res->halfv_cut;
    ggml_tensor * from  = graph.halfv_pass.first > 0 ? cut.companion : graph.res->t_inp_embd;
    const size_t offset = part.first - (graph.halfv_pass.first > 0 ? cut.carried.first : 0);
    return ggml_view_2d(graph.ctx0, from, part.n, graph.n_tokens, from->nb[1], offset*sizeof(float));
}

void give_states(const llm_graph_context & graph, ggml_tensor * states) {
    const auto & staged = *as_staged(graph.mctx);
    const auto & end    = staged.ends().out;
    if (states->ne[2] > 1) { // those of a token follow each other in its row
        ggml_tensor * rows = ggml_cont(graph.ctx0, ggml_permute(graph.ctx0, states, 0, 2, 1, 3));
        states = ggml_reshape_2d(graph.ctx0, rows, rows->ne[0]*rows->ne[1], rows->ne[2]);
    }
    if (end.companion.n > 0) {
        states = ggml_concat(graph.ctx0, states, companion_of(graph, end.companion), 0);
    }
    ggml_build_forward_expand(graph.gf, states);
    if (end.stored) {
        put_rows(graph, staged.stores_after().hidden, states, [](const auto & io) { return io.out; });
    } else {
        graph.res->t_embd = states;
    }
}

// What a query or key would be without RoPE. Some builders have a norm or a scale after it, or rotate a part and join it to the rest.
static ggml_tensor * without_rope(const llm_graph_context & graph, ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_ROPE:
            return t->src[0];
        case GGML_OP_CONCAT:
            {
                ggml_tensor * a = without_rope(graph, t->src[0]);
                ggml_tensor * b = without_rope(graph, t->src[1]);
                return a == t->src[0] && b == t->src[1] ? t : ggml_concat(graph.ctx0, a, b, t->op_params[0]);
            }
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_L2_NORM:
        case GGML_OP_SCALE:
        case GGML_OP_MUL:
            {
                ggml_tensor * x = without_rope(graph, t->src[0]);
                if (x == t->src[0]) {
                    return t;
                }
                ggml_tensor * res = ggml_dup_tensor(graph.ctx0, t);
                res->op     = t->op;
                res->src[0] = x;
                res->src[1] = t->src[1];
                memcpy(res->op_params, t->op_params, sizeof(t->op_params));
                return res;
            }
        default:
            return t;
    }
}

void tap(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, int il) {
    const auto & pass = graph.halfv_pass;
    if (pass.tap != il) {
        return;
    }
    if (!pass.rotated) {
        q = without_rope(graph, q);
        k = without_rope(graph, k);
    }
    if (!pass.all_ask) {
        q = ggml_view_3d(graph.ctx0, q, q->ne[0], q->ne[1], 1, q->nb[1], q->nb[2], (q->ne[2] - 1)*q->nb[2]);
    }
    if (as_staged(graph.mctx)->ends().out.stored) {
        const auto & stores = as_staged(graph.mctx)->stores_after();
        put_rows(graph, stores.queries, ggml_cont(graph.ctx0, q), [](const auto & io) { return io.queries; });
        put_rows(graph, stores.keys,    ggml_cont(graph.ctx0, k), [](const auto & io) { return io.keys; });
        return;
    }
    const auto exported = [&](ggml_tensor * t, const char * name) {
        t = ggml_cont(graph.ctx0, t);
        graph.cb(t, name, il);
        ggml_set_output(t);
        ggml_build_forward_expand(graph.gf, t);
        return t;
    };
    graph.res->halfv_cut.queries = exported(q, "halfv_q");
    graph.res->halfv_cut.keys    = exported(k, "halfv_k");
}

} // namespace halfv
