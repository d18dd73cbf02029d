#pragma once

#include "ggml.h"

#include <algorithm>
#include <cctype>
#include <string>

// What libllama, which is told how encoders shall compute, and libmtmd, which asks for it, both need.
namespace halfv {

// the type of that name in which a matrix can be kept; GGML_TYPE_COUNT when there is none
inline ggml_type matrix_type(const std::string & name) {
    const auto lower = [](std::string text) {
        std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return (char) std::tolower(c); });
        return text;
    };
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = (ggml_type) i;
        const ggml_type_traits * traits = ggml_get_type_traits(type);
        const bool quantizes = traits->to_float && traits->from_float_ref && !ggml_quantize_requires_imatrix(type);
        if ((type == GGML_TYPE_F32 || quantizes) && lower(ggml_type_name(type)) == lower(name)) {
            return type;
        }
    }
    return GGML_TYPE_COUNT;
}

} // namespace halfv
