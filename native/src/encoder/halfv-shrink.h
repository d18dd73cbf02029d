#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

// Pictures that show as much when they are smaller: the size that halfv.image.loss allows. Nothing of mtmd.
namespace halfv {

// interleaved RGB, 8 bits each
struct picture_view {
    const uint8_t * rgb;
    int32_t width;
    int32_t height;
};

struct picture {
    std::vector<uint8_t> rgb;
    int32_t width  = 0;
    int32_t height = 0;

    picture_view view() const { return { rgb.data(), width, height }; }
};

// Bicubic (a = -0.5), over all that a pixel covers where it gets smaller.
picture resized(const picture_view & from, int32_t width, int32_t height);

// A pixel counts as lost when one of its values is further than this from what it was.
constexpr int32_t lost_levels = 32;

// What a picture loses when it is made so small and then large again: the share of lost pixels in the cell, of side x side
// pixels, that loses most; so one corner of small print speaks for all.
float worst_loss(const picture_view & whole, int32_t width, int32_t height, int32_t side);

// How many tokens a picture of that size becomes.
using tokens_of_size = std::function<size_t(int32_t width, int32_t height)>;

// The smallest of ten sizes, down to a quarter of each side, at which no cell loses more than `loss`. Nothing where that is
// its own size.
// side: in pixels, of a token
std::optional<picture> smallest(const picture_view & given, int32_t side, float loss, const tokens_of_size & n_tokens);

} // namespace halfv
