#pragma once

// How far an encoder's graph is, told while it computes.

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

namespace halfv {

// While it lives, computing stops for a moment at the ends of layers, to tell this thread's watcher
// (halfv_watch_encoding). Without a watcher it does nothing.
class encode_progress {
public:
    encode_progress(ggml_backend_sched_t sched, ggml_cgraph * graph);
    ~encode_progress();
    encode_progress(const encode_progress &) = delete;
    encode_progress & operator=(const encode_progress &) = delete;

private:
    bool reached(const ggml_tensor * node, bool ask);
    size_t following() const; // which end comes next, by how long those before it took

    ggml_backend_sched_t sched = nullptr; // null: nobody watches
    std::vector<const ggml_tensor *> ends; // the last node of each layer
    size_t  next  = 0;
    bool    told  = false;
    int64_t start = 0;
};

} // namespace halfv
