#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct ggml_tensor;

namespace halfv {

class attn_input;
class probe;

// Which layers one graph runs. The default is the whole model, as upstream builds it.
struct graph_pass {
    int32_t first   = 0;
    int32_t last    = INT32_MAX; // one past the last layer
    int32_t kv_from = INT32_MAX; // from this layer on, project and store K and V, nothing else
    int32_t tap     = -1;        // export Q and K of this layer
    bool    rotated = false;     // ... with RoPE
    bool    all_ask = false;     // ... and Q of every token, not of the last alone
    bool    narrow  = false;     // tokens take only some channels and heads, where a profile says so
    bool    near    = false;     // ... and of their picture only neighbours
    halfv::probe * probe = nullptr; // nothing runs: watches how the graph is built

    bool    kv_only(int32_t il)         const { return il >= kv_from; }
    bool    is_part()                   const { return !(*this == graph_pass{}); }
    int32_t end(int64_t n_layer)        const { return last < n_layer ? last : (int32_t) n_layer; }
    bool    ends_early(int64_t n_layer) const { return kv_from < end(n_layer) || last < n_layer; }

    bool operator==(const graph_pass & o) const {
        return first == o.first && last == o.last && kv_from == o.kv_from && tap == o.tap && rotated == o.rotated &&
               all_ask == o.all_ask && narrow == o.narrow && near == o.near && probe == o.probe;
    }
};

// Floats [first, first + n) of what a batch gives for a token: layers may read them beside the state that reaches them.
struct input_part {
    uint32_t first = 0, n = 0;

    uint32_t end() const { return first + n; }
    bool operator==(const input_part & o) const { return first == o.first && n == o.n; }
    bool has(const input_part & o) const { return o.first >= first && o.end() <= end(); }

    // both, and what lies between them
    void add(const input_part & o) {
        const uint32_t begin = n == 0 || (o.n > 0 && o.first < first) ? o.first : first;
        n     = (end() > o.end() || o.n == 0 ? end() : o.end()) - begin;
        first = begin;
    }
};

// what is known while a graph of a few layers is built
struct cut_state {
    ggml_tensor * hidden = nullptr;  // what enters a layer of which only K and V are wanted
    std::vector<ggml_tensor *> kept; // the graph, up to the last such layer's K and V

    ggml_tensor * queries = nullptr, * keys = nullptr; // of those that ask and of all, at the tapped layer, for the host

    ggml_tensor * embeddings = nullptr; // stands for them where a graph begins behind them
    ggml_tensor * state = nullptr, * companion = nullptr; // there: what reaches its first layer, and goes along
    input_part    carried;              // what of the input the companion is
    bool          asked = false;        // for embeddings

    attn_input * attention = nullptr; // of all stages
};

// What of an architecture matters for cutting its graphs. Found by building one, without computing it.
struct cuts {
    std::string refusal;         // why it cannot be cut; "": it can
    bool        by_kind = false; // its builder has other weights for embeddings than for tokens
};

} // namespace halfv
