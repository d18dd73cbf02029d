#pragma once

// What mtmd asks of us for a vision encoder: attention inside windows, and how its weights are held.

#include "halfv.h"
#include "halfv-progress.h"
#include "halfv-workers.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <exception>
#include <new>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace halfv {

struct encoder_settings {
    int32_t     attention = HALFV_ATTENTION_FAST;
    std::string weights   = "auto"; // or "off", "file", the name of a ggml type

    // those of this thread, as halfv_get_encoder tells them
    static encoder_settings current();
};

// why an encoder could not be loaded
inline const char * in_words(const std::exception & err) {
    return dynamic_cast<const std::bad_alloc *>(&err) ? "out of memory" : err.what();
}

//
// attention
//

struct grid_window {
    int x, y, width, height;
};

// A grid cut into windows of side x side, smaller at its right and lower edge; those of one size follow each other.
std::vector<grid_window> grid_windows(int width, int height, int side);

struct encoder_attention {
    int32_t level  = HALFV_ATTENTION_STOCK;
    bool    on_cpu = false;
    bool    pads   = false; // heads of a size for which the device's kernels are slow

    void runs_on(ggml_backend_t backend);

    // Windows are runs of tokens that attend to each other only; their lengths, which add up to all tokens. Equal ones
    // that follow each other cost one operation. A mask says the same in llama.cpp; empty: it says something else.
    std::vector<int> windows;

    // q, k and v are [d_head, n_head, n_tokens, n], the result [d_head * n_head, n_tokens * n]; null: as llama.cpp does it
    ggml_tensor * build(
            ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, const ggml_tensor * mask, float scale,
            bool flash) const;
};

//
// weights
//

// A matrix of an encoder times x on a CPU, in the parts that are fastest. Only once the matrix has memory.
ggml_tensor * multiply(ggml_context * ctx, ggml_tensor * matrix, ggml_tensor * x);

// Gives the matrices of an encoder the type, the row length and the buffer with which this machine multiplies fastest.
class encoder_weights {
public:
    explicit encoder_weights(int n_threads) : n_threads(n_threads) {}

    // Changes tensors of `weights`, which have no memory yet. `graph` is one that uses them.
    void plan(const encoder_settings & settings, ggml_backend_t backend, ggml_cgraph * graph, ggml_context * weights);

    // memory for the matrices that go to a buffer of another type; the other tensors get none
    std::vector<ggml_backend_buffer_ptr> allocate() const;

    // whether data must go through set()
    bool owns(const ggml_tensor * weight) const;

    // `data` is what the file has, `stored` its type and shape
    void set(ggml_tensor * weight, const ggml_tensor * stored, const void * data);

    // how much larger than in the file they are, in bytes
    int64_t growth = 0;

private:
    const int n_threads;
    std::optional<worker_pool> workers; // from the first conversion on
    std::unordered_map<const ggml_tensor *, ggml_backend_buffer_type_t> planned; // null: the backend's own buffer
};

} // namespace halfv
