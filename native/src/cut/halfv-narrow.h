#pragma once

// Feed-forward networks of which visual tokens take the first channels alone (halfv.ffn).

#include "halfv-profile.h"

#include "llama-graph.h"

struct llama_model;

namespace halfv {

// How many channels a share of those that a matrix takes is: whole blocks of its type, at least one.
int64_t channels_of(const ggml_tensor & down, float keep);

// whether a device multiplies by a part of this matrix, of rows of n columns; if not, what its profile is refused with
bool can_be_cut(const llama_model & model, int32_t il, const ggml_tensor & matrix, int64_t n);
std::string packed(const ggml_tensor & matrix, int32_t il);

// Puts views of the first channels in place of what a builder is about to take, where tokens of this graph have only those.
void narrow_ffn(const llm_graph_context & graph, int il, ggml_tensor *& up, ggml_tensor *& up_b, ggml_tensor *& gate, ggml_tensor *& gate_b,
                ggml_tensor *& down, bool is_scaled);

// "" where the layers from a profile's on have networks that can be cut, else one sentence that names the key and the value
std::string unfit_channels(const llama_model & model, const halfv_profile & profile);

} // namespace halfv
