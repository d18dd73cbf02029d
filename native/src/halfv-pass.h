#pragma once

#include <cstdint>

namespace halfv {

// Which layers one graph runs. The default is the whole model, as upstream builds it.
struct graph_pass {
    int32_t first   = 0;
    int32_t last    = INT32_MAX; // one past the last layer
    int32_t kv_from = INT32_MAX; // from this layer on, project and store K and V, nothing else
    int32_t tap     = -1;        // export Q and K of this layer
    bool    rotated = false;     // ... with RoPE

    bool    kv_only(int32_t il)         const { return il >= kv_from; }
    bool    is_part()                   const { return !(*this == graph_pass{}); }
    int32_t end(int64_t n_layer)        const { return last < n_layer ? last : (int32_t) n_layer; }
    bool    ends_early(int64_t n_layer) const { return kv_from < end(n_layer) || last < n_layer; }

    bool operator==(const graph_pass & o) const {
        return first == o.first && last == o.last && kv_from == o.kv_from && tap == o.tap && rotated == o.rotated;
    }
};

} // namespace halfv
