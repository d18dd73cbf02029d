#pragma once

#include "halfv-memory.h"
#include "halfv-neighbours.h"

#include "llama-graph.h"

#include <array>
#include <memory>
#include <type_traits>

namespace halfv {

// the memory context of a staged memory, null for any other
const staged_context * as_staged(const llama_memory_context_i * mctx);

// what a graph is built from, with the layers of the memory's current step
llm_graph_params with_pass(llm_graph_params params);

template <typename T>
using per_stage = std::array<std::unique_ptr<T>, n_stages>;

// attention inputs, a T for each stage that the graph reaches
template <typename T>
class staged_input : public T {
public:
    using one = T;

    staged_input(const llm_graph_context & graph, const staged_context * mctx) :
        T(graph.hparams, graph.cparams, nullptr), staged(mctx), ends(mctx ? mctx->ends() : graph_ends()) {}

protected:
    const staged_context * staged;
    const graph_ends ends;
    bool one_mask = false;
    per_stage<T> stages;
};

class attn_input : public staged_input<llm_graph_input_attn_kv> {
public:
    using staged_input::staged_input;

    void add(ggml_context * ctx0, int s, std::unique_ptr<one> stage);
    void share_masks(ggml_context * ctx0);

    llm_graph_input_attn_kv * at(int il) override;
    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    ggml_tensor * mask_of_rest(int il) const; // of heads in which narrow pictures have nothing
    const near_keys & neighbours(const llm_graph_context & graph, int il);

private:
    void hide_narrow(ggml_tensor * mask, const ggml_tensor * of, int s, const llama_ubatch & ubatch) const;

    per_stage<llm_graph_input_attn_kv> windows; // the same cells, with the mask of layers that have a sliding window
    per_stage<llm_graph_input_attn_kv> rests;   // ... and that of heads in which narrow pictures have nothing
    std::array<const near_keys *, n_stages> near = {};
};

// what builders with sliding windows ask for
class window_input : public llm_graph_input_attn_kv_iswa {
public:
    window_input(const llm_graph_context & graph, llm_graph_input_attn_kv * all) :
        llm_graph_input_attn_kv_iswa(graph.hparams, graph.cparams, nullptr), all(all) {}
    void set_input(const llama_ubatch *) override {}
    bool can_reuse(const llm_graph_params &) override { return true; }

    llm_graph_input_attn_kv * const all; // of all layers
};

// null for another memory
window_input * window_inputs(const llm_graph_context & graph);
const window_input * as_window(const llm_graph_input_attn_kv_iswa * inp);

// A layer that stores no keys and values attends to those of a layer before it.
ggml_tensor * attend(const llm_graph_context & graph, const window_input & inp, ggml_tensor * wo, ggml_tensor * wo_b, ggml_tensor * wo_s, ggml_tensor * q,
                     ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b, ggml_tensor * sinks, ggml_tensor * v_mla, float kq_scale, int il);

// the same, where the caches hold latent keys alone
class latent_input : public staged_input<llm_graph_input_attn_k> {
public:
    using staged_input::staged_input;

    void add(ggml_context *, int s, std::unique_ptr<one> stage) { stages[s] = std::move(stage); }
    void share_masks(ggml_context * ctx0);

    llm_graph_input_attn_k * at(int il);
    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;
};

// What builders ask for: the inputs of each stage that the graph reaches, of none for a probe. Null for another memory.
template <typename T, typename F>
T * stage_inputs(const llm_graph_context & graph, F && build_stage) {
    const auto * staged = as_staged(graph.mctx);
    if (!staged && !graph.halfv_pass.probe) {
        return nullptr;
    }
    auto inp = std::make_unique<T>(graph, staged);
    for (int s = 0; s < n_stages && staged; ++s) {
        if (const auto * stage = staged->stage(s)) {
            inp->add(graph.ctx0, s, build_stage(graph.ctx0, graph.ubatch, graph.hparams, graph.cparams, stage));
        }
    }
    if (staged) { inp->share_masks(graph.ctx0); }
    if constexpr (std::is_same_v<T, attn_input>) { graph.res->halfv_cut.attention = inp.get(); }
    return (T *) graph.res->add_input(std::move(inp));
}

// that of a layer; itself for another memory
llm_graph_input_attn_k * latent_at(llm_graph_input_attn_k * inp, int il);

// what a graph that does not start at layer 0 takes: a state for each token, and what goes along with it
void take_rows(const llm_graph_context & graph);

// what leaves a graph that does not come to the output head
void give_states(const llm_graph_context & graph, ggml_tensor * states);

// exports the queries of those that ask and the keys of all, when this layer is the one asked for
void tap(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, int il);

} // namespace halfv
