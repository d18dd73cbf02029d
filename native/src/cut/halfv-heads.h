#pragma once

// Attention of which visual tokens take the first groups of heads alone (halfv.heads), and of each other only neighbours
// (halfv.neighbours).

#include "halfv-profile.h"

#include "llama-graph.h"

#include <optional>

struct llama_layer;
struct llama_model;

namespace halfv {

// how many groups of heads, which share keys and values, a share of them is: at least one
int64_t groups_of(int64_t n_head_kv, float keep);

// What a layer projects where tokens take only some groups: the others' queries, keys and values are zero. None: all of them.
std::optional<llm_graph_qkv> few_heads(const llm_graph_context & graph, const llama_layer & layer, ggml_tensor * cur, int64_t n_embd_head_q,
                                       int64_t n_head_q, int64_t n_embd_head_k, int64_t n_head_k, int64_t n_embd_head_v, int64_t n_head_v, int il, bool reshape);

// The attention of a layer, before its output matrix, of which it may leave the columns of some heads.
ggml_tensor * attend(const llm_graph_context & graph, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, ggml_tensor * kq_b, ggml_tensor * mask,
                     ggml_tensor * sinks, ggml_tensor * v_mla, float kq_scale, int il, ggml_tensor *& wo);

// "" where the layers from a profile's on can do either, else one sentence that names the key and the value
std::string unfit_attention(const llama_model & model, const halfv_profile & profile);

} // namespace halfv
