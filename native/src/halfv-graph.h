#pragma once

#include "halfv-memory.h"

#include "llama-graph.h"

#include <array>
#include <memory>

namespace halfv {

// the memory context of a staged memory, null for any other
const staged_context * as_staged(const llama_memory_context_i * mctx);

// what a graph is built from, with the layers of the memory's current step
llm_graph_params with_pass(llm_graph_params params);

template <typename T>
using per_stage = std::array<std::unique_ptr<T>, n_stages>;

// attention inputs, one set per stage that the graph reaches
class attn_input : public llm_graph_input_attn_kv {
public:
    attn_input(const llama_hparams & hparams, const llama_cparams & cparams, const staged_context & mctx) :
        llm_graph_input_attn_kv(hparams, cparams, nullptr), staged(&mctx), ends(mctx.ends()) {}

    template <typename F>
    void build(ggml_context * ctx0, F && build_stage) {
        for (int s = 0; s < n_stages; ++s) {
            if (const auto * stage = staged->stage(s)) {
                stages[s] = build_stage(stage);
                add_window(ctx0, s);
            }
        }
        share_masks(ctx0);
    }

    llm_graph_input_attn_kv * at(int il) override;
    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

private:
    void add_window(ggml_context * ctx0, int s);
    void share_masks(ggml_context * ctx0);

    const staged_context * staged;
    const graph_ends ends;
    bool one_mask = false;
    per_stage<llm_graph_input_attn_kv> stages;
    per_stage<llm_graph_input_attn_kv> windows; // the same cells, with the mask of layers that have a sliding window
};

// what builders with sliding windows ask for
class window_input : public llm_graph_input_attn_kv_iswa {
public:
    window_input(const llm_graph_context & graph, llm_graph_input_attn_kv * all) :
        llm_graph_input_attn_kv_iswa(graph.hparams, graph.cparams, nullptr), all(all) {}
    void set_input(const llama_ubatch *) override {}
    bool can_reuse(const llm_graph_params &) override { return true; }

    llm_graph_input_attn_kv * const all; // of all layers; null for a probe
};

// of a layer that stores no keys and values, and attends to those of a layer before it
ggml_tensor * attend_to_stored(const llm_graph_context & graph, const window_input & inp, ggml_tensor * q, ggml_tensor * wo, ggml_tensor * wo_b,
                               ggml_tensor * wo_s, ggml_tensor * kq_b, ggml_tensor * sinks, float kq_scale, int il);

// null for another memory
const window_input * as_window(const llm_graph_input_attn_kv_iswa * inp);

// the same, where the caches hold latent keys alone
class latent_input : public llm_graph_input_attn_k {
public:
    latent_input(const llm_graph_context & graph, const staged_context * mctx) :
        llm_graph_input_attn_k(graph.hparams, graph.cparams, nullptr), staged(mctx), ends(mctx ? mctx->ends() : graph_ends()) {}

    template <typename F>
    void build(ggml_context * ctx0, F && build_stage) {
        for (int s = 0; s < n_stages && staged; ++s) { // null for a probe
            if (const auto * stage = staged->stage(s)) { stages[s] = build_stage(stage); }
        }
        share_masks(ctx0);
    }

    llm_graph_input_attn_k * at(int il);
    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

private:
    void share_masks(ggml_context * ctx0);

    const staged_context * staged;
    const graph_ends ends;
    bool one_mask = false;
    per_stage<llm_graph_input_attn_k> stages;
};

// that of a layer; itself for another memory
llm_graph_input_attn_k * latent_at(llm_graph_input_attn_k * inp, int il);

// what a graph that does not start at layer 0 takes: a state for each token, and what goes along with it
void take_rows(const llm_graph_context & graph);

// what leaves a graph that does not come to the output head
void give_states(const llm_graph_context & graph, ggml_tensor * states);

// exports the query of the last token and the keys of all, when this layer is the one asked for
void tap(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, int il);

} // namespace halfv
