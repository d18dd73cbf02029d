#pragma once

#include "ggml-cpp.h"
#include "halfv-selection.h"
#include "halfv-states.h"

#include <vector>

namespace halfv {

// What choosing asks of states on a device, as a graph that runs where they are. Some devices round the factors of a product
// of floats to 10 bits (CUDA with TF32, Metal to half): each is taken as the sum of two that lose nothing by it.
struct device_graph {
    ggml_context_ptr context;
    ggml_cgraph * graph = nullptr;
    ggml_backend_dev_t device = nullptr; // that has the states
    ggml_tensor * ids   = nullptr; // input: the rows
    ggml_tensor * norm  = nullptr; // input: weights of their elements; null where there are none
    struct output {
        ggml_tensor * tensor;
        size_t at; // where it belongs in what comes of all of them, in floats
    };
    std::vector<output> outputs;
};

// cosines of the states of n rows of `hidden`, their first d floats, weighted, as cover_gram takes them in this layout
constexpr gram_layout similarities_layout(int n) { return { n, gram_block, gram_stripe }; }
device_graph similarities_graph(const state_store & hidden, int d, int n);

// n keys times the query of each head of so many tokens, to be multiplied by dots_scale: [token][n_head][dots_stripe] for so many
// keys, then for the next
constexpr int dots_stripe = 1024, dots_queries = 8;
device_graph dots_graph(const state_store & keys, const state_store & queries, const std::vector<state_ref> & asking, int n, int n_head, int n_head_kv);
constexpr float dots_scale = 4096.0f;

} // namespace halfv
