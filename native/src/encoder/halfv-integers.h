#pragma once

#include "ggml.h"

namespace halfv {

// what multiplies 8-bit integers on this CPU
enum class integers_with : int { NONE, AVX_VNNI, AVX512_VNNI };

bool can_multiply_integers(integers_with with);

integers_with best_integers();

// whether a product is one that these are made for
bool suits_integers(const ggml_tensor * matrix, const ggml_tensor * x);

// ggml_mul_mat of a q8_0 matrix [k, n] and x [k, rows] of floats, as two operations of the CPU backend: x is rounded to q8_0 as
// ggml rounds it, with its scales in float; sums within a block are of integers, those of blocks in float
ggml_tensor * multiply_integers(ggml_context * ctx, integers_with with, ggml_tensor * matrix, ggml_tensor * x);

} // namespace halfv
