#pragma once

#include "ggml.h"
#include "llama-batch.h"
#include "llama-kv-cells.h"

namespace halfv {

class staged_context;

// What llama_kv_cache::set_input_kq_mask writes for tokens of one sequence that each see what comes before them. It looks at
// each cell for each token of a picture whose tokens share a position, as they do with M-RoPE; here a cell is looked at once.
void set_causal_mask(ggml_tensor * mask, const llama_kv_cells & cells, const llama_ubatch & ubatch);

// whether that says all of this mask
bool is_one_sequence(const ggml_tensor * mask, const llama_ubatch & ubatch);

// Adds to what tokens see of cells, by the first sequence of each; what they do not see stays so.
void raise_mask(ggml_tensor * mask, const staged_context & staged, int s, const llama_ubatch & ubatch);

} // namespace halfv
