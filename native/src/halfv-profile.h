#pragma once

#include "halfv.h"

#include <array>
#include <memory>
#include <optional>
#include <string>

struct gguf_context;

namespace halfv {

// keep = 1 and no stage III: prunes nothing until it is changed
halfv_profile default_profile(uint32_t n_layer);

// "" when the profile fits a model of n_layer layers, else one sentence that names the key and the value
std::string validate(const halfv_profile & profile, uint32_t n_layer);

// whether a profile changes anything at all for a model of n_layer layers
bool prunes(const halfv_profile & profile, uint32_t n_layer);

// A model's profile: from its GGUF metadata, or set through the C ABI.
class model_profile {
public:
    void read(const gguf_context * metadata);
    void set(std::optional<halfv_profile> profile); // a valid one, or none

    // the profile, none, or a std::runtime_error that says what is wrong with it; HALFV=off in the environment: none
    std::optional<halfv_profile> get(uint32_t n_layer) const;

    std::array<uint32_t, 3> stage_cells = {}; // 0: as many as the context has

private:
    std::optional<halfv_profile> value;
    std::string error; // of read()
};

std::shared_ptr<model_profile> make_model_profile(); // for llama-model.h, which knows the name alone

} // namespace halfv
