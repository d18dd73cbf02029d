#include "halfv-pixel.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

namespace halfv {

namespace {
struct picture {
    const uint8_t * rgb;
    size_t columns;
    size_t side;
    float tau;

    const uint8_t * line(int32_t patch, size_t y) const {
        const size_t row = patch/columns, column = patch%columns;
        return rgb + 3*side*((row*side + y)*columns + column);
    }

    bool alike(int32_t a, int32_t b) const {
        if (a == b) {
            return true;
        }
        for (size_t y = 0; y < side; ++y) {
            const uint8_t * of_a = line(a, y);
            const uint8_t * of_b = line(b, y);
            if (tau < 1.0f) {
                if (memcmp(of_a, of_b, 3*side) != 0) { return false; }
                continue;
            }
            for (size_t x = 0; x < 3*side; ++x) {
                if (std::abs(of_a[x] - of_b[x]) > tau) { return false; }
            }
        }
        return true;
    }
};
} // namespace

bool patch_map::valid() const {
    const bool ascending = std::adjacent_find(entered.begin(), entered.end(), std::greater_equal<>()) == entered.end();
    return columns > 0 && rows > 0 && !entered.empty() && ascending &&
        entered.front() >= 0 && entered.back() < (int64_t) columns*rows;
}

std::vector<int32_t> entering_patches(const uint8_t * rgb, int32_t columns, int32_t rows, int32_t side, float tau, std::vector<int32_t> * out) {
    const picture pic = { rgb, (size_t) columns, (size_t) side, tau };
    std::vector<int32_t> stands(columns*rows); // the patch that stands for each
    std::vector<int32_t> entered;
    for (int32_t i = 0; i < columns*rows; ++i) {
        const int32_t left = i%columns > 0 ? stands[i - 1] : -1;
        const int32_t up   = i >= columns  ? stands[i - columns] : -1;
        int32_t predicted  = left >= 0 ? left : up;
        if (left >= 0 && up >= 0) {
            const int32_t corner = stands[i - columns - 1];
            if (pic.alike(corner, left) && !pic.alike(corner, up)) {
                predicted = up;
            }
        }
        if (predicted >= 0 && pic.alike(i, predicted)) {
            stands[i] = predicted;
        } else {
            stands[i] = i;
            entered.push_back(i);
        }
    }
    if (out) {
        *out = std::move(stands);
    }
    return entered;
}

std::vector<int32_t> in_every_block(const std::vector<int32_t> & entered, int32_t columns, int32_t rows) {
    const int32_t across = (columns + pixel_block - 1)/pixel_block, down = (rows + pixel_block - 1)/pixel_block;
    std::vector<char> seen(across*down, 0);
    for (const int32_t i : entered) {
        seen[i/columns/pixel_block*across + i%columns/pixel_block] = 1;
    }
    std::vector<int32_t> out = entered;
    for (int32_t block = 0; block < across*down; ++block) {
        if (!seen[block]) {
            const int32_t y = block/across*pixel_block, x = block%across*pixel_block;
            out.push_back(std::min(y + pixel_block, rows)*columns - columns + std::min(x + pixel_block, columns) - 1);
        }
    }
    std::sort(out.begin(), out.end());
    return out;
}

patch_map prune_pixels(std::vector<float> & pixels, int32_t columns, int32_t rows, int32_t side, const float * mean, const float * std, float tau) {
    // back to the 8 bits that these values were made from, where equal and "one level apart" mean what they say
    std::vector<uint8_t> rgb(pixels.size());
    for (size_t i = 0; i < pixels.size(); i += 3) {
        for (size_t c = 0; c < 3; ++c) {
            const float level = 255.0f*(pixels[i + c]*std[c] + mean[c]) + 0.5f;
            if (!std::isfinite(level)) { // the encoder's image_std is 0, say
                return { columns, rows, {} };
            }
            rgb[i + c] = (uint8_t) std::clamp(level, 0.0f, 255.0f);
        }
    }
    patch_map map = { columns, rows, in_every_block(entering_patches(rgb.data(), columns, rows, side, tau), columns, rows) };
    const size_t n = map.entered.size();
    const size_t total = (size_t) columns*rows;
    if ((total - n)*pixel_least < total) {
        map.entered.clear();
        return map;
    }
    std::vector<float> strip(3*side*side*n);
    for (size_t i = 0; i < n; ++i) {
        const size_t row = map.entered[i]/columns, column = map.entered[i]%columns;
        for (size_t y = 0; y < (size_t) side; ++y) {
            const float * from = pixels.data() + 3*side*((row*side + y)*columns + column);
            std::copy_n(from, 3*side, strip.data() + 3*side*(y*n + i));
        }
    }
    pixels = std::move(strip);
    return map;
}

patch_windows group_patches(const patch_map & map, int32_t window) {
    const int32_t across = (map.columns + window - 1)/window;
    const auto window_of = [&](int32_t i) {
        const int32_t at = map.entered[i];
        return at/map.columns/window*across + at%map.columns/window;
    };
    std::vector<std::vector<int32_t>> windows(across*((map.rows + window - 1)/window));
    for (size_t i = 0; i < map.entered.size(); ++i) {
        windows[window_of(i)].push_back(i);
    }
    std::stable_sort(windows.begin(), windows.end(), [](const auto & a, const auto & b) { return a.size() > b.size(); });
    patch_windows out;
    out.place.resize(map.entered.size());
    for (const auto & members : windows) {
        if (members.empty()) {
            break;
        }
        out.lengths.push_back(members.size());
        for (const int32_t i : members) {
            out.place[i] = out.order.size();
            out.order.push_back(i);
        }
    }
    return out;
}

std::vector<float> window_mask(const patch_windows & windows, int32_t n_merge) {
    const size_t each = n_merge*n_merge, n = windows.order.size()*each;
    std::vector<float> mask(n*n, std::numeric_limits<float>::lowest());
    size_t first = 0;
    for (const int32_t length : windows.lengths) {
        const size_t last = first + length*each;
        for (size_t row = first; row < last; ++row) {
            std::fill(mask.begin() + row*n + first, mask.begin() + row*n + last, 0.0f);
        }
        first = last;
    }
    return mask;
}

std::vector<int32_t> patch_positions(const patch_map & map, int32_t n_merge, const std::vector<int32_t> * order) {
    const size_t n = map.entered.size()*n_merge*n_merge;
    std::vector<int32_t> out(4*n);
    size_t i = 0;
    for (size_t at = 0; at < map.entered.size(); ++at) {
        const int32_t place = map.entered[order ? (*order)[at] : at];
        const int32_t y = place/map.columns*n_merge;
        const int32_t x = place%map.columns*n_merge;
        for (int32_t dy = 0; dy < n_merge; ++dy) {
            for (int32_t dx = 0; dx < n_merge; ++dx, ++i) {
                out[i] = out[2*n + i] = y + dy;
                out[n + i] = out[3*n + i] = x + dx;
            }
        }
    }
    return out;
}

} // namespace halfv
