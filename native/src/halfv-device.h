#pragma once

#include "ggml-cpp.h"
#include "halfv-states.h"

#include <vector>

namespace halfv {

// What choosing asks of states on a device, as a graph that runs where they are. Some devices round the factors of a product
// of floats to 10 bits (CUDA with TF32, Metal to half): each is taken as the sum of two that lose nothing by it.
struct device_graph {
    ggml_context_ptr context;
    ggml_cgraph * graph = nullptr;
    ggml_tensor * ids   = nullptr; // input: the rows
    ggml_tensor * norm  = nullptr; // input: weights of their elements; null where there are none
    std::vector<ggml_tensor *> outputs;
};

// cosines of n rows of `hidden`, weighted: the lower triangle in blocks of rows, as cover_gram takes it
device_graph similarities_graph(const state_store & hidden, int n);

// n keys times the query of each head: [n_head][n], to be multiplied by dots_scale
device_graph dots_graph(const state_store & keys, const state_store & queries, const state_ref & query, int n, int n_head, int n_head_kv);
constexpr float dots_scale = 4096.0f;

} // namespace halfv
