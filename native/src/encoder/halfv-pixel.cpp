#include "halfv-pixel.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>

namespace halfv {

static const uint8_t * line(const picture_levels & pic, size_t frame, size_t patch, size_t y) {
    const size_t columns = pic.columns, side = pic.side, row = patch/columns, column = patch%columns;
    return pic.frames[std::min(frame, pic.frames.size() - 1)].data() + 3*side*((row*side + y)*columns + column);
}

// of two pictures with the same grid, or of one
static bool alike(const picture_levels & pic_a, int32_t a, const picture_levels & pic_b, int32_t b, float tau) {
    if (a == b && &pic_a == &pic_b) {
        return true;
    }
    const size_t side = pic_a.side;
    for (size_t frame = 0; frame < std::max(pic_a.frames.size(), pic_b.frames.size()); ++frame) {
        for (size_t y = 0; y < side; ++y) {
            const uint8_t * of_a = line(pic_a, frame, a, y);
            const uint8_t * of_b = line(pic_b, frame, b, y);
            if (tau < 1.0f) {
                if (memcmp(of_a, of_b, 3*side) != 0) { return false; }
                continue;
            }
            for (size_t x = 0; x < 3*side; ++x) {
                if (std::abs(of_a[x] - of_b[x]) > tau) { return false; }
            }
        }
    }
    return true;
}

bool patch_map::valid() const {
    const bool ascending = std::adjacent_find(entered.begin(), entered.end(), std::greater_equal<>()) == entered.end();
    return columns > 0 && rows > 0 && !entered.empty() && ascending &&
        entered.front() >= 0 && entered.back() < (int64_t) columns*rows;
}

std::vector<char> seen_frames::changed(const picture_levels & now, float tau) const {
    std::vector<char> res((size_t) now.columns*now.rows, 1);
    for (size_t i = 0; compares(now) && tau >= 0.0f && i < res.size(); ++i) {
        res[i] = !alike(levels, i, now, i, tau);
    }
    return res;
}

void seen_frames::see(picture_levels && now, const std::vector<char> & fresh) {
    if (!compares(now)) {
        levels = std::move(now);
        return;
    }
    while (levels.frames.size() < now.frames.size()) {
        levels.frames.push_back(levels.frames.back());
    }
    for (size_t i = 0; i < fresh.size(); ++i) {
        for (size_t frame = 0; fresh[i] && frame < levels.frames.size(); ++frame) {
            for (size_t y = 0; y < (size_t) now.side; ++y) {
                const uint8_t * from = line(now, frame, i, y);
                std::copy_n(from, 3*now.side, levels.frames[frame].begin() + (line(levels, frame, i, y) - levels.frames[frame].data()));
            }
        }
    }
}

std::vector<int32_t> entering_patches(const picture_levels & pic, const std::vector<char> & changed, float tau, std::vector<int32_t> * out) {
    const int32_t columns = pic.columns;
    std::vector<int32_t> stands(columns*pic.rows, -1); // the patch that stands for each
    std::vector<int32_t> entered;
    for (int32_t i = 0; i < columns*pic.rows; ++i) {
        if (!changed[i]) {
            continue;
        }
        const int32_t left = i%columns > 0 ? stands[i - 1] : -1;
        const int32_t up   = i >= columns  ? stands[i - columns] : -1;
        int32_t predicted  = left >= 0 ? left : up;
        if (left >= 0 && up >= 0) {
            const int32_t corner = stands[i - columns - 1];
            if (corner >= 0 && alike(pic, corner, pic, left, tau) && !alike(pic, corner, pic, up, tau)) {
                predicted = up;
            }
        }
        if (predicted >= 0 && tau >= 0.0f && alike(pic, i, pic, predicted, tau)) {
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

std::vector<int32_t> in_every_block(const std::vector<int32_t> & entered, int32_t columns, int32_t rows, int32_t block, const std::vector<char> & among) {
    const int32_t across = (columns + block - 1)/block;
    std::vector<int32_t> last(across*((rows + block - 1)/block), -1); // of those that could; -1: one is there already
    const auto block_of = [&](int32_t i) { return i/columns/block*across + i%columns/block; };
    for (int32_t i = 0; i < columns*rows; ++i) {
        if (among[i]) { last[block_of(i)] = i; }
    }
    for (const int32_t i : entered) {
        last[block_of(i)] = -1;
    }
    std::vector<int32_t> out = entered;
    std::copy_if(last.begin(), last.end(), std::back_inserter(out), [](int32_t i) { return i >= 0; });
    std::sort(out.begin(), out.end());
    return out;
}

// back to the 8 bits that these values were made from, where equal and "one level apart" mean what they say; empty: one is none
static std::vector<uint8_t> levels_of(const std::vector<float> & pixels, const float * mean, const float * std) {
    constexpr size_t TURN = 48; // numbers after which colours begin again, and vectors of any width end
    float scale[TURN], offset[TURN];
    for (size_t i = 0; i < TURN; ++i) {
        scale[i]  = 255.0f*std[i%3];
        offset[i] = 255.0f*mean[i%3] + 0.5f;
    }
    std::vector<uint8_t> rgb(pixels.size());
    int n_none = 0; // the encoder's image_std is 0, say
    for (size_t first = 0; first < pixels.size(); first += TURN) {
        const float * from = pixels.data() + first;
        uint8_t * to = rgb.data() + first;
        const size_t n = std::min(TURN, pixels.size() - first);
        for (size_t i = 0; i < n; ++i) {
            const float level = from[i]*scale[i] + offset[i];
            n_none += !(std::fabs(level) <= std::numeric_limits<float>::max());
            to[i] = (uint8_t) (int32_t) std::min(std::max(level, 0.0f), 255.0f);
        }
    }
    return n_none ? std::vector<uint8_t>() : rgb;
}

patch_map prune_pixels(picture_pixels & pixels, const float * mean, const float * std, pixel_taus taus, seen_frames & seen) {
    const int32_t columns = pixels.columns, rows = pixels.rows;
    const size_t side = pixels.side, total = (size_t) columns*rows;
    picture_levels now = { columns, rows, pixels.side, {} };
    for (const auto & frame : pixels.frames) {
        now.frames.push_back(levels_of(frame, mean, std));
        if (now.frames.back().empty()) {
            seen.forget();
            return { columns, rows, {} };
        }
    }
    const std::vector<char> every(total, 1);
    std::vector<char> fresh = seen.changed(now, taus.frames);
    patch_map map = { columns, rows, in_every_block(entering_patches(now, fresh, taus.neighbours), columns, rows, pixel_block, fresh) };
    map.entered = in_every_block(map.entered, columns, rows, frame_block, every);
    if ((total - map.entered.size())*pixel_least < total) {
        map.entered.clear();
    }
    for (const int32_t i : map.entered) {
        fresh[i] = 1;
    }
    if (taus.frames >= 0.0f) {
        seen.see(std::move(now), map.whole() ? every : fresh);
    }
    if (map.whole()) {
        return map;
    }
    const size_t n = map.entered.size();
    for (auto & frame : pixels.frames) {
        std::vector<float> strip(3*side*side*n);
        for (size_t i = 0; i < n; ++i) {
            const size_t row = map.entered[i]/columns, column = map.entered[i]%columns;
            for (size_t y = 0; y < side; ++y) {
                const float * from = frame.data() + 3*side*((row*side + y)*columns + column);
                std::copy_n(from, 3*side, strip.data() + 3*side*(y*n + i));
            }
        }
        frame = std::move(strip);
    }
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
