#pragma once

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace halfv::server {

inline std::string text_setting(const char * name) {
    const char * text = std::getenv(name);
    return text ? text : "";
}

// A whole number in the environment; anything else is a sentence.
inline int64_t number_setting(const char * name, int64_t by_default) {
    const std::string text = text_setting(name);
    if (text.empty()) {
        return by_default;
    }
    if (text.size() > 12 || text.find_first_not_of("0123456789") != std::string::npos) {
        throw std::invalid_argument(std::string("halfv: ") + name + " = \"" + text + "\" is not valid: it must be a whole number");
    }
    return std::stoll(text);
}

} // namespace halfv::server
