#pragma once

// Graphs of a few layers, whatever the architecture. Builders name the tensor that leaves a layer, the one place where a graph
// is cut: what comes before the first layer is dropped, and nothing is built after the last one.

#include "halfv-profile.h"

#include "llama-graph.h"
#include "llama-memory.h"

#include <memory>

struct llama_model;
class llama_memory_recurrent_context;

namespace halfv {

// found at the first call
const layer_cuts & cuts_of(const llama_model & model);

// Called for a memory that can be staged, a cache with or without recurrent layers; throws what cuts_of waits for while that asks.
void reached_memory(const llama_model & model, const llama_memory_i::layer_filter_cb & recurrent);

// The layers whose queries and keys choose for stages II, III and those behind: the last with attention in the stage before,
// all of the same form. -1: there is none.
std::array<int32_t, n_stages - 1> layers_asked(const llama_model & model, const halfv_profile & profile);

// whose K and V a layer attends to: its own, or those of one before it
int32_t layer_of_cache(const llama_hparams & hparams, int32_t il);

// "" where the stages of a profile can be run, else one sentence that names the key and the value
std::string unfit(const llama_model & model, const halfv_profile & profile);

// the profile, or one that prunes nothing either, with stage I as long as it takes to have a layer with attention
halfv_profile fitted(const llama_model & model, halfv_profile profile);

// what a builder is given that is only watched
const llama_memory_recurrent_context & recurrent_of(const probe & probe);

// whether a picture's rows beyond the embedding are added after this layer
bool deep_stack_follows(const llama_hparams & hparams, int32_t il);

// at every tensor that a builder names
void at_name(const llm_graph_context & graph, ggml_tensor * cur, const char * name, int il);

// what a builder takes for the embeddings of a part of the model; null: as ever
ggml_tensor * instead_of_embeddings(const llm_graph_context & graph, ggml_tensor * tok_embd);

// stands for the attention of a layer that this pass leaves out; null: it does not
ggml_tensor * instead_of_attention(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * wo, int il,
                                   const ggml_tensor * v_mla = nullptr);

// ... and of one whose K and V have just been stored, in a pass that wants no more of it
ggml_tensor * after_storing(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * wo, int il, const ggml_tensor * v_mla = nullptr);

// thrown out of a builder
struct end_of_pass {};
void finish(const llm_graph_params & params, bool ended);

// Runs a builder. Null where the pass ended before the output head: the graph is complete without it.
template <typename F>
std::unique_ptr<llm_graph_context> build(const llm_graph_params & params, F && builder) {
    std::unique_ptr<llm_graph_context> res;
    try {
        res = builder();
    } catch (const end_of_pass &) {}
    finish(params, !res);
    return res;
}

} // namespace halfv
