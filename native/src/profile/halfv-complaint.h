#pragma once

#include <cstdint>
#include <sstream>
#include <string>

// Sentences about a profile; halfv_edge says the same for the same mistake: tests/support/profile_cases.json holds both to it.
namespace halfv {

template <typename T>
std::string complaint(const std::string & key, const T & value, const std::string & rule) {
    std::ostringstream out;
    out << key << " = " << value << " is not valid: " << rule;
    return out.str();
}

inline std::string missing(const std::string & key) {
    return key + " is missing: a profile needs it";
}

template <typename T>
std::string wrong_version(const T & version) {
    return complaint("halfv.version", version, "this build reads version 1; a newer halfv-edge may read it, or set HALFV=off to run unpruned");
}

} // namespace halfv
