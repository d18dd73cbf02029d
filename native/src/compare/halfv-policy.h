#pragma once

#include <cstdint>
#include <vector>

struct ggml_tensor;

namespace halfv {

// the row of a token in a table of embeddings, of any type
void token_embedding(const ggml_tensor * table, int32_t token, float * dst);

// Other ways to choose k of n tokens, to compare with. Indices come ascending.

// evenly spread, from half a step on
std::vector<int32_t> choose_uniform(int n, int k);

// the same for the same seed, on every platform
std::vector<int32_t> choose_random(int n, int k, uint64_t seed);

constexpr int dart_pivots = 4; // of the picture, and as many of the text after it

// DART: pivots are the tokens whose keys have the largest L1 norm, of the picture and of the text after it. Each pivot in
// turn, the picture's first, adds the k/8 tokens of the picture that are least like it and not yet taken. So 4 + 8*(k/8)
// tokens are chosen.
//   keys      n_visual rows, then n_text, of `width` floats
//   features  as many rows of d floats, L2 normalised
std::vector<int32_t> choose_dart(const float * keys, int width, const float * features, int d, int n_visual, int n_text, int k);

} // namespace halfv
