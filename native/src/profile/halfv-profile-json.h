#pragma once

#include "halfv.h"

#include <optional>
#include <string>
#include <vector>

// A profile as JSON: docs/gguf-format.md, "The sidecar". What is wrong is a std::runtime_error with one sentence.
namespace halfv {

// a number of the evidence or a list of them, of which only the model tells how long it is
struct evidence {
    std::string           key;
    std::optional<size_t> n_values;        // of a list
    size_t                n_beyond_layers; // how many more than the model has layers it must be
    std::string           not_finite;      // the first such number, "" when there is none
};

struct json_profile {
    halfv_profile         profile;
    std::vector<evidence> calibration;
};

json_profile parse_profile(const std::string & text);

// the text of a regular file that is short enough for a profile
std::string read_profile_file(const std::string & path);

// "" when the evidence fits a model of n_layer layers, else one sentence
std::string validate(const std::vector<evidence> & calibration, uint32_t n_layer);

// Text from outside as it may stand in a message: in quotes, one line, printable ASCII, not long.
std::string quoted(const std::string & text, size_t n_max = 80);

} // namespace halfv
