#include "halfv-graph.h"

#include <algorithm>

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

llm_graph_input_attn_kv * attn_input::at(int il) {
    for (int s = 0; s < n_stages; ++s) {
        if (stages[s] && il < staged->bounds()[s + 1]) {
            return stages[s].get();
        }
    }
    GGML_ABORT("halfv: layer %d is in no stage of this graph", il);
}

// The largest tensors of a long context: n_kv times n_ubatch. The mask that each stage has made for itself stays out of the graph.
void attn_input::share_mask(ggml_context * ctx0) {
    one_mask = staged->one_mask();
    llm_graph_input_attn_kv * first = nullptr;
    for (auto & stage : stages) {
        if (!stage || !one_mask) {
            continue;
        }
        if (!first) {
            first = stage.get();
            continue;
        }
        ggml_tensor * mask = first->self_kq_mask;
        ggml_tensor * own  = stage->self_kq_mask;
        if (staged->is_reserve() && own->ne[0] < mask->ne[0]) { // a smaller cache; nobody runs this graph
            mask = ggml_view_4d(ctx0, mask, own->ne[0], own->ne[1], own->ne[2], own->ne[3], own->nb[1], own->nb[2], own->nb[3], 0);
        }
        GGML_ASSERT(ggml_are_same_shape(mask, own));
        stage->self_kq_mask = stage->self_kq_mask_cnv = mask;
    }
}

void attn_input::set_input(const llama_ubatch * ubatch) {
    bool set = false;
    for (auto & stage : stages) {
        if (!stage) {
            continue;
        }
        ggml_tensor * mask = stage->self_kq_mask;
        if (one_mask && set) { stage->self_kq_mask = nullptr; }
        stage->set_input(ubatch);
        stage->self_kq_mask = mask;
        set = true;
    }
}

bool attn_input::can_reuse(const llm_graph_params & params) {
    staged = as_staged(params.mctx);
    if (!staged || one_mask != staged->one_mask()) {
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

ggml_tensor * build_inp_hidden(const llm_graph_context & graph) {
    const int64_t n_embd = graph.hparams.n_embd;
    const int64_t width  = input_width(graph.hparams, graph.halfv_pass.first);

    auto inp = std::make_unique<llm_graph_input_embd>(width);
    inp->embd = ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, width, graph.n_tokens);
    ggml_set_input(inp->embd);
    graph.cb(inp->embd, "inp_hidden", -1);

    ggml_tensor * cur = inp->embd;
    if (width != n_embd) {
        cur = ggml_view_2d(graph.ctx0, cur, n_embd, graph.n_tokens, cur->nb[1], 0);
    }
    graph.res->t_inp_embd = cur;
    graph.res->add_input(std::move(inp));
    ggml_build_forward_expand(graph.gf, cur);
    return cur;
}

static ggml_tensor * before_rope(ggml_tensor * t) {
    return t->op == GGML_OP_ROPE ? t->src[0] : t;
}

void tap(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, int il) {
    const auto & pass = graph.halfv_pass;
    if (pass.tap != il) {
        return;
    }
    if (!pass.rotated) {
        q = before_rope(q);
        k = before_rope(k);
    }
    const auto exported = [&](ggml_tensor * t, const char * name) {
        t = ggml_cont(graph.ctx0, t);
        graph.cb(t, name, il);
        ggml_set_output(t);
        ggml_build_forward_expand(graph.gf, t);
        return t;
    };
    ggml_tensor * q_last = ggml_view_3d(graph.ctx0, q, q->ne[0], q->ne[1], 1, q->nb[1], q->nb[2], (q->ne[2] - 1)*q->nb[2]);
    graph.res->t_halfv_q = exported(q_last, "halfv_q");
    graph.res->t_halfv_k = exported(k,      "halfv_k");
}

} // namespace halfv

// a graph that ends before the output head gives its hidden states, as they were before layers that only had K and V to give
bool llm_graph_context::ends_early(ggml_tensor * inpL) const {
    if (!halfv_pass.ends_early(n_layer) && halfv_pass.last != (int32_t) n_layer) {
        return false;
    }
    if (halfv_pass.first < halfv_pass.kv_from) {
        ggml_build_forward_expand(gf, inpL);
        res->t_embd = inpL;
    }
    return true;
}
