#pragma once

#include "halfv.h"

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

namespace halfv {

// Structs of the C ABI begin with the size that the caller's header gave them; ours may be longer.

// of the members that every caller has; never changes
inline size_t least_size(const halfv_profile *) { return offsetof(halfv_profile, pixel_prune); }
inline size_t least_size(const halfv_stats *)   { return offsetof(halfv_stats, kv_cells); }

inline const char * struct_name(const halfv_profile *) { return "halfv_profile"; }
inline const char * struct_name(const halfv_stats *)   { return "halfv_stats"; }

// throws std::runtime_error on a size that no version of the struct has
template <typename T>
size_t checked_size(const T * given) {
    const size_t size = given->size;
    if (size >= least_size(given) && size <= sizeof(T) && size % alignof(T) == 0) {
        return size;
    }
    const std::string name = std::string("struct ") + struct_name(given);
    throw std::runtime_error("halfv: size = " + std::to_string(size) + " is not valid for " + name + ": set it to sizeof(" + name +
            ") of a halfv.h no newer than this library, whose own has " + std::to_string(sizeof(T)) + " bytes");
}

// what the caller's struct holds; `defaults` for members that it does not have
template <typename T>
T read_sized(const T * given, T defaults) {
    memcpy(&defaults, given, checked_size(given));
    defaults.size = sizeof(T);
    return defaults;
}

// fills the members that the caller's struct has
template <typename T>
void write_sized(T * out, T value) {
    const size_t size = checked_size(out);
    value.size = size;
    memcpy(out, &value, size);
}

} // namespace halfv
