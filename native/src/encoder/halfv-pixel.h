#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

// Patches dropped before the vision encoder, because their neighbours predict them (PixelPrune) or the picture before showed
// them. A patch is here what becomes one visual token: n_merge x n_merge patches of the encoder. Nothing of mtmd.
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

// A picture in levels of 8 bits, or two frames of a video that become one row of tokens: a patch of it is what both show there.
struct picture_levels {
    int32_t columns = 0, rows = 0, side = 0;
    std::vector<std::vector<uint8_t>> frames; // interleaved, columns*side wide

    bool same_grid(const picture_levels & other) const {
        return columns == other.columns && rows == other.rows && side == other.side;
    }
};

// What the pictures before this one showed, place by place: a patch is unchanged while it is within tau of what was there when
// the place last changed, so that slow changes do not add up unseen. A still picture is one that stays for both frames.
class seen_frames {
public:
    void forget() { levels = {}; }
    bool compares(const picture_levels & now) const { return !levels.frames.empty() && levels.same_grid(now); }

    // for each patch whether it changed; all did in a picture of another grid
    std::vector<char> changed(const picture_levels & now, float tau) const;
    void see(picture_levels && now, const std::vector<char> & fresh); // the patches that count from now on

private:
    picture_levels levels;
};

// Row by row, a patch is predicted to be its upper neighbour where its left one equals the upper left one and the upper
// one does not, and else its left one (in the first column: its upper one). It enters when any of its values is further
// than tau from the prediction. Neighbours are compared as what stands for them, so that errors do not add up: every
// patch is within tau of the patch that stands for it.
// changed: the others do not enter and predict nothing; so the hole of a change is never filled by what did not change.
// out (optional): for each patch that changed, the one that stands for it.
std::vector<int32_t> entering_patches(const picture_levels & pic, const std::vector<char> & changed, float tau, std::vector<int32_t> * out = nullptr);

// Of each block of so many by so many patches one enters, the lower right one where none did, so that a page's layout is
// left of large areas in which nothing changes. Only blocks that have some of `among`, and of those only these.
constexpr int32_t pixel_block = 2;
constexpr int32_t frame_block = 8; // of what the picture before showed already
std::vector<int32_t> in_every_block(const std::vector<int32_t> & entered, int32_t columns, int32_t rows, int32_t block, const std::vector<char> & among);

// A picture of which less than one patch in so many would stay out, a photo say, is taken whole: holes for next to nothing.
constexpr size_t pixel_least = 10;

// How far patches that stay out may be from what stands for them; below 0: none stays out for this reason.
struct pixel_taus {
    float neighbours = -1.0f;
    float frames     = -1.0f;
};

// Normalised pixels, of one frame or two, interleaved.
struct picture_pixels {
    int32_t columns, rows, side;
    std::vector<std::vector<float>> frames;
};

// Leaves in the normalised pixels only the strips of the patches that enter; or everything, when most do or a pixel is no number.
patch_map prune_pixels(picture_pixels & pixels, const float * mean, const float * std, pixel_taus taus, seen_frames & seen);

// Windows of window x window patches of the whole picture. Those with as many patches follow each other.
patch_windows group_patches(const patch_map & map, int32_t window);

// n x n for the encoder's own patches, n_merge*n_merge for each of ours: 0 within a window, else the least float.
std::vector<float> window_mask(const patch_windows & windows, int32_t n_merge);

// Four sections of M-RoPE positions (y, x, y, x) of the encoder's own patches; order: group_patches(), none: as they are.
std::vector<int32_t> patch_positions(const patch_map & map, int32_t n_merge, const std::vector<int32_t> * order = nullptr);

} // namespace halfv
