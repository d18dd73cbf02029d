#pragma once

#include "ggml.h"

namespace halfv {

// whether this CPU multiplies tiles of bfloat16 (AMX), and its system lets it
bool can_tile();

// whether a product is one that tiles are made for
bool suits_tiles(const ggml_tensor * matrix, const ggml_tensor * x);

// ggml_mul_mat of a bf16 matrix [k, n] and x [k, rows] of floats, as one operation of the CPU backend: x is rounded to bfloat16,
// sums are in float
ggml_tensor * multiply_tiles(ggml_context * ctx, ggml_tensor * matrix, ggml_tensor * x);

} // namespace halfv
