#pragma once

#include "ggml.h"

namespace halfv {

// whether this CPU has the instructions of attend_cpu()
bool can_attend_cpu();

// Softmax attention as one operation of the CPU backend, in bfloat16 with sums in float, as the encoders were trained.
// q [d_head, n_head, n_q, n], k and v [d_head, n_head_kv, n_k, n] in f32, rows contiguous; [d_head * n_head, n_q * n].
ggml_tensor * attend_cpu(ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, float scale);

} // namespace halfv
