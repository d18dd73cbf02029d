#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

// Fewer groups through most of an encoder's layers. Its first layers see all of them; then only those go on that their
// neighbours do not foretell, and before the projector each of the others takes over what changed in the one most like it.
// A group is the encoder's patches that become one token. Nothing of mtmd.
namespace halfv {

// What is asked of a picture.
struct encoder_reduction {
    int32_t layer = 0;    // the first one that sees only some groups
    float   keep  = 1.0f; // share of them
    int32_t n     = 0;    // groups that there are

    bool none() const { return keep >= 1.0f; }
    int32_t n_seen() const; // of them, by this layer and later ones
};

// A picture, or some of one size, whose groups' states lie one after the other.
struct group_states {
    std::vector<float> states;
    int32_t n_pictures = 1;
    int32_t n_lead     = 0; // groups of each that are no place of it, as class tokens: they are kept
    int32_t columns    = 1; // of the grid
    std::vector<int32_t> places = {}; // ascending, where each group of a picture is in the grid; none: everywhere, row by row
};

// One of the two runs of an encoder, or the only one, as a graph builder asks for it.
struct encoder_run {
    enum { whole, first, second } part = whole;
    int32_t layer     = 0; // that the second begins with
    int32_t n_patches = 1; // of a group
    std::vector<float>   states; // second: of all groups, after the first run
    std::vector<int32_t> kept;   // of them, ascending
    std::vector<int32_t> like;   // of every group: which of the kept ones it is like, itself if it is one

    // The second run after the first one, without the groups that are most like one beside them, by cosine after what all have in
    // common is taken away.
    static encoder_run after(const encoder_run & run, group_states groups, int32_t n_embd, float keep, int32_t n_threads);

    bool goes_on() const { return part == second; }
    int32_t first_layer() const { return part == second ? layer : 0; }
    int32_t end_layer(int32_t n_layer) const { return part == first ? layer : n_layer; }
    int32_t n_inside(int32_t n, int32_t n_pictures = 1) const; // patches of a picture that layers see, of n

    // before the layers: the states of the kept groups in place of `patches` [n_embd, n]
    ggml_tensor * enter(ggml_context * ctx, ggml_tensor * patches) const;

    // after the layers; `entered` is what the first of them got. First: gives the states, in the picture's order if `order` has
    // an index for each group. Second: all groups, in the picture's order.
    ggml_tensor * leave(ggml_context * ctx, ggml_cgraph * graph, ggml_tensor * patches, ggml_tensor * entered, ggml_tensor * order) const;

    // `all` has sections with a place for each patch; here for those that the layers see
    ggml_tensor * positions(ggml_context * ctx, ggml_tensor * all) const;

    // once the graph is built: the first run computes what leave() gives and nothing else; all inputs may still be set
    void trim(ggml_context * ctx, ggml_cgraph * graph) const;

    // once the graph has memory
    void set_inputs(ggml_cgraph * graph) const;
    // once it has been computed: what leave() gave
    static std::vector<float> given(ggml_cgraph * graph);
};

} // namespace halfv
