#pragma once

// Watches a builder, without computing what it builds: whether its layers follow each other one by one, and what they take.

#include "halfv-pass.h"

#include "llama-graph.h"
#include "llama-memory-recurrent.h"

#include <string>
#include <unordered_set>
#include <vector>

namespace halfv {

class probe {
public:
    probe(const llama_hparams & hparams, const llama_memory_recurrent_context * recurrent) : hparams(hparams), recurrent(recurrent) {}

    const llama_hparams & hparams;
    const llama_memory_recurrent_context * const recurrent; // null: no layer is
    std::string fault;
    std::vector<const ggml_tensor *> weights; // in the order in which layers take them
    std::vector<bool> attends; // layer by layer
    std::vector<input_part> reads; // of the input beside the state, layer by layer
    std::vector<bool> narrows; // layer by layer: feed-forward networks of which some channels can be taken, and only such
    std::vector<bool> plain;    // layer by layer: attention to keys and values of its own, through an output matrix
    std::vector<bool> projected; // ... whose heads come from build_qkv
    bool centred = false; // the norm after the last one takes the mean away
    uint32_t n_states = 1; // that leave a layer for a token
    float scale = 1.0f; // of embeddings before the first layer

    void embeddings(const ggml_tensor * t) { input = t; }
    void reads_beside(const ggml_tensor * part) { beside.insert(part); }
    void boundary(ggml_tensor * cur, int32_t il);
    void attention(const ggml_tensor * q, const ggml_tensor * k, const ggml_tensor * v, const ggml_tensor * out, int32_t il, bool is_plain);
    void projects(int32_t il, bool has_heads);
    void feeds(int32_t il, bool has_channels);
    bool has_fed(int32_t il) const { return fed.count(il) > 0; }
    void done(const llm_graph_result & res);

private:
    void fail(const std::string & why) { if (fault.empty()) { fault = why; } }
    bool visit(const ggml_tensor * root);

    int32_t layer = 0; // that is being built
    bool attended = false;
    const ggml_tensor * input = nullptr, * state = nullptr;
    std::vector<const ggml_tensor *> roots; // of this layer
    std::unordered_set<const ggml_tensor *> past, seen, beside;
    std::unordered_set<int32_t> fed;
};

} // namespace halfv
