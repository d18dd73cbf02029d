#pragma once

#include "halfv-keys.h"
#include "halfv-pass.h"
#include "halfv-profile-json.h"

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

struct gguf_context;

namespace halfv {

constexpr int n_stages = 3 + HALFV_MAX_FURTHER; // that there can be

// Stage s runs layers [bounds[s], bounds[s + 1]); stages that a profile does not have are empty, and at the end.
using stage_bounds = std::array<int32_t, n_stages + 1>;
stage_bounds bounds_of(const halfv_profile & profile, uint32_t n_layer);

// Share of a picture's tokens that stage s updates where all have theirs, and that its layers hold cells of.
double share_updated(const halfv_profile & profile, int s);
double share_held(const halfv_profile & profile, int s);

// Where stage s begins, from III on: the share of the original tokens that goes on, and whether they are chosen by the question.
float share_of_stage(const halfv_profile & profile, int s);
inline bool is_chosen(float share) { return share > 0.0f && share < 1.0f; }

// keep = 1 and no stage III: prunes nothing until it is changed
halfv_profile default_profile(uint32_t n_layer);

// "" when the profile fits a model of n_layer layers, else one sentence that names the key and the value
std::string validate(const halfv_profile & profile, uint32_t n_layer);

// whether visual tokens take only some channels, heads or neighbours
bool narrows(const halfv_profile & profile);

// whether a profile changes anything at all for a model of n_layer layers
bool prunes(const halfv_profile & profile, uint32_t n_layer);

// Leaves of a profile what counts for a model of n_layer layers: all of it if its graphs can be cut, or else what libmtmd does
// by it, with stages that keep everything. "", or what is wrong with that.
std::string make_usable(halfv_profile & profile, uint32_t n_layer, bool can_be_cut);

// Values of PROFILE_KEYS where a file or the environment has them, of the types in value_type's order.
using key_value  = std::variant<uint32_t, float, std::string, std::vector<uint32_t>, std::vector<float>>;
using key_values = std::array<std::optional<key_value>, N_PROFILE_KEYS>;

// the profile that they make, or a std::runtime_error that says what is wrong with it already without knowing the model
halfv_profile make_profile(const key_values & values);

// what a model came with, right or wrong
struct found_profile {
    std::optional<halfv_profile> value;
    std::vector<evidence>        calibration; // of HALFV_PROFILE; in a GGUF it is never wrong enough to matter
    std::string error;                        // what was wrong already without knowing the model
    std::string origin;                       // said ahead of it
    bool        from_environment = false;
};

// what of a model matters for cutting its graphs, layer by layer
struct layer_cuts : cuts {
    std::vector<bool> attends;
    std::vector<bool> recurrent; // empty: none is
    std::vector<bool> plain;     // attend to keys and values of their own, through an output matrix
    std::vector<bool> projects;  // ... whose heads are projected in one place
    std::vector<bool> feeds;     // have a feed-forward network of which some channels can be taken
    std::vector<input_part> reads; // of a token's input, beside the state
    bool centred = false;        // the norm after the last one is no RMS norm
    uint32_t n_states = 1;       // that a layer hands on for a token; the first is the one that tokens are compared by
    std::array<float, 2> scales = { 1.0f, 1.0f }; // of embeddings before the first layer, of text and of pictures

    bool    is_recurrent(int32_t il) const { return il < (int32_t) recurrent.size() && recurrent[il]; }
    int32_t last_that_attends(int32_t first, int32_t end) const; // -1: none in [first, end)
    input_part companion(int32_t first) const; // of a state that enters this layer: what that and later layers read
};

// A model's profile: set through the C ABI, or else from HALFV_PROFILE, or else from its GGUF metadata.
// A program may set it while another thread makes a context.
class model_profile {
public:
    void read(const gguf_context * metadata); // when the model is loaded
    void write(gguf_context * metadata) const; // when it is saved
    void set(std::optional<halfv_profile> profile); // a valid one, or none

    // The profile, none, or a std::runtime_error that says what is wrong with it. HALFV=off: none. Of a model that cannot be
    // pruned only what concerns the encoder counts, and a wrong HALFV_PROFILE is meant for other models of the process.
    std::optional<halfv_profile> get(uint32_t n_layer, bool supported) const;

    // whether there is one, right or wrong
    bool exists() const;

    // 0: as many as the context has
    void set_stage_cells(const std::array<uint32_t, 3> & cells);
    std::array<uint32_t, 3> stage_cells() const;

    // found once
    template <typename F>
    const layer_cuts & cuts(F && find) {
        std::call_once(found_cuts, [&]() { model_cuts = find(); });
        return model_cuts;
    }

private:
    mutable std::mutex mutex;
    found_profile      found;
    std::array<uint32_t, 3> n_cells = {};
    std::once_flag found_cuts;
    layer_cuts     model_cuts;
};

std::shared_ptr<model_profile> make_model_profile(); // for llama-model.h, which knows the name alone

} // namespace halfv
