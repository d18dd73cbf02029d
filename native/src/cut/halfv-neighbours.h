#pragma once

// Attention of visual tokens to text and, of their picture, to neighbours alone. Tokens go in blocks, each with the keys that
// any of it sees gathered, so that work grows with their number and not with its square.

#include "halfv-memory.h"

#include "llama-graph.h"

#include <tuple>
#include <vector>

namespace halfv {

// where the tokens of narrow pictures are in a sequence
class picture_places {
public:
    struct place {
        int32_t image = -1; // -1: of none
        int32_t row = -1, column = -1; // -1: that picture has no grid
        llama_pos pos = 0, y = 0, x = 0, frame = 0; // of videos
        bool is_before(const place & o) const { return std::tie(pos, y, x) <= std::tie(o.pos, o.y, o.x); }
    };

    picture_places(const sequence * s, bool is_2d);
    place at(llama_pos pos, llama_pos y = 0, llama_pos x = 0) const;

private:
    struct span {
        int32_t image;
        llama_pos first, last;
        int32_t n_columns; // where places follow from positions; 0: they do not
    };
    std::vector<span> spans;
    const bool is_2d;
};

// how many of its picture a token sees at most, itself among them
inline uint64_t neighbours_of(uint32_t width) { return ((uint64_t) width*width + 1)/2; }

class near_keys : public llm_graph_input_i {
public:
    near_keys(const llm_graph_context & graph, const staged_context & staged, int s, ggml_type type_mask);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    ggml_tensor * blocks(ggml_context * ctx0, ggml_tensor * q) const; // padded, as attention splits them by the keys' fourth dimension
    ggml_tensor * gather(ggml_context * ctx0, ggml_tensor * t, bool transposed) const; // keys or values, for each block

    ggml_tensor * ids, * mask;

private:
    struct plan {
        int64_t n_block, n_blocks, n_keys;
        std::vector<picture_places::place> asking, held; // of tokens, of cells
        std::vector<std::vector<uint32_t>> keys; // of each block, as indices of held
        std::vector<uint32_t> cells; // of held
    };
    plan planned(const llama_ubatch & ubatch) const;
    bool sees(const picture_places::place & token, const picture_places::place & key) const;

    const staged_context * staged;
    const int s; // the stage
    int64_t n_tokens, n_block, n_blocks, n_keys;
};

} // namespace halfv
