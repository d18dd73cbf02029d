// Pictures, frames, grids and maps of patches: what leaves patches out, groups them by windows and says where they were.

#include "tiny-model.h"
#include "halfv-pixel.h"

#include <algorithm>
#include <limits>

using namespace fuzz;

static float number(choices & in) {
    static const float special[] = { 0.0f, 1.0f, -1.0f, 1e-45f, 1e38f, -1e38f, 0.5f, 255.0f,
        std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity() };
    const uint32_t which = in.below(32);
    return which < std::size(special) ? special[which] : (float) (int32_t) in.take(2)/256.0f;
}

static void check_windows(const halfv::patch_map & map, int32_t window, int32_t n_merge) {
    const auto windows = halfv::group_patches(map, window);
    size_t sum = 0;
    for (const int32_t length : windows.lengths) { sum += length; }
    require(sum == map.entered.size() && windows.order.size() == sum && windows.place.size() == sum, "windows lose patches");
    for (size_t i = 0; i < sum; ++i) {
        require(windows.place[windows.order[i]] == (int32_t) i, "places are not the inverse of the order");
    }
    if (sum*n_merge*n_merge <= 256) {
        const size_t n = sum*n_merge*n_merge;
        require(halfv::window_mask(windows, n_merge).size() == n*n, "a mask of another size");
    }
    const auto positions = halfv::patch_positions(map, n_merge, &windows.order);
    for (const int32_t at : positions) {
        require(at >= 0 && at < std::max(map.columns, map.rows)*n_merge, "a position outside the picture");
    }
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    choices in = { data, size };
    const int32_t columns = 1 + in.below(20), rows = 1 + in.below(20), side = 1 + in.below(4);
    const float tau = number(in);
    float mean[3], std[3];
    for (int c = 0; c < 3; ++c) { mean[c] = number(in); std[c] = number(in); }
    const int32_t window = 1 + in.below(24), n_merge = 1 + in.below(3);

    if (in.below(4) == 0) { // a map as a file might have it
        halfv::patch_map map = { (int32_t) in.take(4), (int32_t) in.take(4), {} };
        if (in.below(2)) { map.columns = columns; map.rows = rows; }
        while (in.left() && map.entered.size() < 64) { map.entered.push_back((int32_t) in.take(in.below(2) ? 4 : 1)); }
        // a valid map of a huge picture has windows without end, which its encoder's own limits exclude
        if (map.valid() && (int64_t) map.columns*map.rows < 1 << 16) { check_windows(map, window, n_merge); }
        return 0;
    }

    const size_t n_all = (size_t) 3*columns*rows*side*side;
    const halfv::pixel_taus taus = { tau, number(in) };
    halfv::seen_frames seen;
    std::vector<float> shown(n_all);
    for (uint32_t n_pictures = 1 + in.below(4); n_pictures > 0; --n_pictures) {
        halfv::picture_pixels pixels = { columns, rows, side, {} };
        if (in.below(8) == 0) { std::swap(pixels.columns, pixels.rows); }
        for (uint32_t n_frames = 1 + in.below(2); n_frames > 0; --n_frames) {
            for (uint32_t n = in.below(2) ? in.below(64) : n_all; n > 0; --n) {
                shown[n*7919 % n_all] = in.left() ? number(in) : (float) (n/7 % 3);
            }
            pixels.frames.push_back(shown);
        }
        const auto map = halfv::prune_pixels(pixels, mean, std, taus, seen);
        for (const auto & frame : pixels.frames) {
            require(frame.size() == (map.whole() ? n_all : (size_t) 3*side*side*map.entered.size()), "a strip of another size than its map");
        }
        if (!map.whole()) {
            require(map.valid() && map.columns == pixels.columns && map.rows == pixels.rows, "a map that is not valid");
            check_windows(map, window, n_merge);
        }
    }
    return 0;
}
