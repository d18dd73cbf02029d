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

// values of keys that are text, in the order of their enums
constexpr const char * RESTS[]   = { "frozen", "dropped" };
constexpr const char * QUERIES[] = { "last", "question" };

// "", or what is wrong with a name, which is shown in this way
inline std::string set_named(int32_t & out, const char * key, const std::string & name, const std::string & shown, const char * const (&names)[2]) {
    for (int32_t i = 0; i < 2; ++i) {
        if (name == names[i]) {
            out = i;
            return "";
        }
    }
    return complaint(key, shown, std::string("it must be \"") + names[0] + "\" or \"" + names[1] + "\"");
}

} // namespace halfv
