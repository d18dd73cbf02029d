#include "halfv-cut.h"

#include "halfv-graph.h"
#include "halfv-probe.h"
#include "halfv-recurrent.h"

#include "llama-model.h"

#include <algorithm>
#include <cstring>

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
    auto & cut = graph.res->halfv_cut;
    cut.embeddings = cur;
    if (pass.probe) {
        pass.probe->embeddings(cur);
    } else {
        take_rows(graph);
    }
    if (cut.carried.has({ 0, graph.hparams.n_embd })) { // layers take them once more
        cur = ggml_cont(graph.ctx0, ggml_view_2d(graph.ctx0, cut.companion, graph.n_embd, graph.n_tokens, cut.companion->nb[1], 0));
    } else if (width != graph.n_embd) {
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
    if (pass.probe) { pass.probe->attention(q, k, v, res, il, wo && !v_mla && !graph.hparams.is_mla()); }
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

} // namespace halfv
