#pragma once

#include "halfv.h"

#include <cstdint>
#include <vector>

struct ggml_tensor;
struct llama_model;

namespace halfv {

// Honest FLOPs: every matmul that runs, GQA shapes as they are, causal attention counted pair by pair.
class cost_model {
public:
    explicit cost_model(const llama_model & model);

    // n tokens through layers [first, last), the first of them seeing `before` earlier tokens and itself
    double span(int32_t first, int32_t last, uint64_t n, uint64_t before) const;

    // K and V of n tokens in those layers
    double kv_only(int32_t first, int32_t last, uint64_t n) const;

    // what n tokens spare in those layers that take only some channels of their feed-forward networks
    double narrowed(const halfv_profile & p, int32_t first, int32_t last, uint64_t n) const;

    double queries(int32_t il, uint64_t n) const { return 2.0*n*n_embd*layers[il].query_width; }

    double outputs(uint64_t n) const { return n*head; }

    // text, a picture and text that asks for one output, from the picture on
    void prompt(const halfv_profile & p, uint64_t n_before, uint64_t n_visual, uint64_t n_after, double & dense, double & spent) const;

    // the pruner: one query against n keys; farthest-point sampling of k among n
    double scores(uint64_t n, int32_t il) const { return 2.0*n*layers[il].query_width; }
    double cover(uint64_t n, uint64_t k) const { return 2.0*n*k*n_embd; }

private:
    struct layer {
        double linear;      // per token
        double kv;          // of it, for K and V
        double pair;        // per query-key pair
        double query_width; // n_head * head_dim
        double feed;        // of linear, for the feed-forward network
        const ggml_tensor * down; // its last matrix; null: none
    };
    std::vector<layer> layers;
    double head;
    double n_embd;
};

} // namespace halfv
