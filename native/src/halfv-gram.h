#pragma once

#include "ggml-backend.h"

#include <vector>

namespace halfv {

// similarities of n rows of d floats, computed on a backend; false when it has no room or no such op
bool device_gram(ggml_backend_t backend, const float * rows, int n, int d, std::vector<float> & gram);

} // namespace halfv
