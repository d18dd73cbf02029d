#pragma once

#include "ggml.h"

namespace halfv {

// what computes attention on this CPU
enum class attend_with : int { GGML, AVX2, AVX512, BF16, TILES }; // the last two in bfloat16

bool can_attend(attend_with with);

attend_with best_attend(); // GGML: none of ours

// Softmax attention as one operation of the CPU backend: in f32, or in bfloat16 with sums in float, as the encoders were
// trained. q [d_head, n_head, n_q, n], k and v [d_head, n_head_kv, n_k, n] in f32, rows contiguous; [d_head * n_head, n_q * n].
ggml_tensor * attend_cpu(ggml_context * ctx, attend_with with, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, float scale);

} // namespace halfv
