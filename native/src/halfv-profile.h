#pragma once

#include "halfv.h"

#include <array>
#include <optional>
#include <string>

struct gguf_context;

namespace halfv {

// "" when the profile fits a model of n_layer layers, else one sentence that names the key and the value
std::string validate(const halfv_profile & profile, uint32_t n_layer);

// whether a profile changes anything at all for a model of n_layer layers
bool prunes(const halfv_profile & profile, uint32_t n_layer);

// A model's profile: from its GGUF metadata, or set through the C ABI.
class model_profile {
public:
    void read(const gguf_context * metadata);
    void set(const halfv_profile * profile);

    // the profile, none, or a std::runtime_error that says what is wrong with it; HALFV=off in the environment: none
    std::optional<halfv_profile> get(uint32_t n_layer) const;

    std::array<uint32_t, 3> stage_cells = {}; // 0: as many as the context has

private:
    std::optional<halfv_profile> value;
    std::string error; // of read()
};

} // namespace halfv
