#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Patches dropped before the vision encoder, because their neighbours predict them (PixelPrune). A patch is here what
// becomes one visual token: n_merge x n_merge patches of the encoder. Nothing of mtmd.
namespace halfv {

// Which patches of a picture enter the encoder. Their pixels lie side by side, as a picture one patch high.
struct patch_map {
    int32_t columns = 0; // of the whole picture
    int32_t rows    = 0;
    std::vector<int32_t> entered; // row by row; empty: the picture is whole, and no such strip

    bool whole() const { return entered.empty(); }
    bool valid() const; // of one from a file
};

// The order in which an encoder with window attention takes the patches that entered.
struct patch_windows {
    std::vector<int32_t> order;   // indices into `entered`, window by window, the fullest windows first
    std::vector<int32_t> place;   // the inverse: where each went
    std::vector<int32_t> lengths; // patches of each window; those without any are left out
};

// Row by row, a patch is predicted to be its upper neighbour where its left one equals the upper left one and the upper
// one does not, and else its left one (in the first column: its upper one). It enters when any of its values is further
// than tau from the prediction. Neighbours are compared as what stands for them, so that errors do not add up: every
// patch is within tau of the patch that stands for it.
// rgb: interleaved, columns*side wide. out (optional): for each patch, the one that stands for it.
std::vector<int32_t> entering_patches(const uint8_t * rgb, int32_t columns, int32_t rows, int32_t side, float tau, std::vector<int32_t> * out = nullptr);

// Of each block of so many by so many patches one enters, the lower right one where none did, so that a page's layout is
// left of large areas in which nothing changes.
constexpr int32_t pixel_block = 2;
std::vector<int32_t> in_every_block(const std::vector<int32_t> & entered, int32_t columns, int32_t rows);

// A picture of which less than one patch in so many would stay out, a photo say, is taken whole: holes for next to nothing.
constexpr size_t pixel_least = 10;

// Leaves in the normalised pixels only the strip of the patches that enter; or everything, when most do or a pixel is no number.
patch_map prune_pixels(std::vector<float> & pixels, int32_t columns, int32_t rows, int32_t side, const float * mean,
                                 const float * std, float tau);

// Windows of window x window patches of the whole picture. Those with as many patches follow each other.
patch_windows group_patches(const patch_map & map, int32_t window);

// n x n for the encoder's own patches, n_merge*n_merge for each of ours: 0 within a window, else the least float.
std::vector<float> window_mask(const patch_windows & windows, int32_t n_merge);

// Four sections of M-RoPE positions (y, x, y, x) of the encoder's own patches; order: group_patches(), none: as they are.
std::vector<int32_t> patch_positions(const patch_map & map, int32_t n_merge, const std::vector<int32_t> * order = nullptr);

} // namespace halfv
