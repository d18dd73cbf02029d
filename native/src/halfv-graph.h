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

// attention inputs, one set per stage that the graph reaches
class attn_input : public llm_graph_input_attn_kv {
public:
    attn_input(const llama_hparams & hparams, const llama_cparams & cparams, const staged_context & mctx) :
        llm_graph_input_attn_kv(hparams, cparams, nullptr), staged(&mctx) {}

    template <typename F>
    void build(ggml_context * ctx0, F && build_stage) {
        for (int s = 0; s < n_stages; ++s) {
            if (const auto * stage = staged->stage(s)) {
                stages[s] = build_stage(stage);
            }
        }
        share_mask(ctx0);
    }

    llm_graph_input_attn_kv * at(int il) override;
    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

private:
    void share_mask(ggml_context * ctx0);

    const staged_context * staged;
    bool one_mask = false;
    std::array<std::unique_ptr<llm_graph_input_attn_kv>, n_stages> stages;
};

// the input of a graph that does not start at layer 0
ggml_tensor * build_inp_hidden(const llm_graph_context & graph);

// exports the query of the last token and the keys of all, when this layer is the one asked for
void tap(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, int il);

} // namespace halfv
