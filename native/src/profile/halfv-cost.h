#pragma once

#include "halfv.h"

#include <cstdint>
#include <vector>

struct ggml_tensor;
struct llama_model;

namespace halfv {

// Tokens of narrow pictures, and what they see of what comes before them: all of it, and text with neighbours. Those of one
// picture, behind text and some more of it; others can be added up.
struct narrow_tokens {
    double n = 0, pairs = 0, near_pairs = 0;

    narrow_tokens() = default;
    narrow_tokens(const halfv_profile & p, uint64_t n, uint64_t n_text, uint64_t n_before);
    void add(double n_seen, double n_near) { ++n; pairs += n_seen; near_pairs += n_near; }
};

// Honest FLOPs: every matmul that runs, GQA shapes as they are, causal attention counted pair by pair.
class cost_model {
public:
    explicit cost_model(const llama_model & model);

    // n tokens through layers [first, last), the first of them seeing `before` earlier tokens and itself
    double span(int32_t first, int32_t last, uint64_t n, uint64_t before) const;

    // K and V of n tokens in those layers, n_narrow of them with some heads alone
    double kv_only(const halfv_profile & p, int32_t first, int32_t last, uint64_t n, uint64_t n_narrow) const;

    // what these tokens spare in those layers that take only some channels, heads or neighbours
    double narrowed(const halfv_profile & p, int32_t first, int32_t last, const narrow_tokens & tokens) const;

    double queries(const halfv_profile & p, int32_t il, uint64_t n, uint64_t n_narrow) const;

    double outputs(uint64_t n) const { return n*head; }

    // text, a picture and text that asks for one output, from the picture on
    void prompt(const halfv_profile & p, uint64_t n_before, uint64_t n_visual, uint64_t n_after, double & dense, double & spent) const;

    // the pruner: one query against n keys; farthest-point sampling of k among n
    double scores(uint64_t n, int32_t il) const { return 2.0*n*layers[il].query_width; }
    double cover(uint64_t n, uint64_t k) const { return 2.0*n*k*n_embd; }
    double count(uint64_t n, uint64_t k) const { return cover(n - k, k); } // which of k each of the others is most like

private:
    double heads_spared(const halfv_profile & p, int32_t il) const; // share of a layer's heads that narrow tokens do without

    struct layer {
        double linear;      // per token
        double kv;          // of it, for K and V
        double pair;        // per query-key pair
        double query_width; // n_head * head_dim
        double heads;       // of linear, for queries, keys, values and the output matrix
        int64_t n_groups;   // of heads
        double feed;        // of linear, for the feed-forward network
        const ggml_tensor * down; // its last matrix; null: none
    };
    std::vector<layer> layers;
    double head;
    double n_embd;
};

} // namespace halfv
