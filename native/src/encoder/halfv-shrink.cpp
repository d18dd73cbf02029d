#include "halfv-shrink.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace halfv {

namespace {
// what one line of pixels is made of: for each new one the first old one, and the weights of it and those that follow
struct line_weights {
    std::vector<int32_t> first;
    std::vector<std::vector<float>> weights;

    line_weights(int32_t from, int32_t to) {
        const double step = (double) from/to, wide = std::max(step, 1.0);
        for (int32_t i = 0; i < to; ++i) {
            const double centre = (i + 0.5)*step;
            const int32_t begin = std::max(0, (int32_t) (centre - 2*wide + 0.5));
            const int32_t end   = std::min(from, (int32_t) (centre + 2*wide + 0.5));
            std::vector<float> of_one;
            double sum = 0;
            for (int32_t at = begin; at < end; ++at) {
                const double weight = cubic((at + 0.5 - centre)/wide);
                of_one.push_back(weight);
                sum += weight;
            }
            for (float & weight : of_one) { weight /= sum; }
            first.push_back(begin);
            weights.push_back(std::move(of_one));
        }
    }

    static double cubic(double x) {
        x = std::abs(x);
        return x < 1 ? (1.5*x - 2.5)*x*x + 1 : x < 2 ? ((-0.5*x + 2.5)*x - 4)*x + 2 : 0;
    }
};

// one row of `from` in the new width
void narrow_row(const picture_view & from, const line_weights & columns, int32_t y, float * out) {
    const uint8_t * row = from.rgb + (size_t) 3*from.width*y;
    for (size_t x = 0; x < columns.first.size(); ++x, out += 3) {
        const uint8_t * at = row + (size_t) 3*columns.first[x];
        float r = 0, g = 0, b = 0;
        for (const float weight : columns.weights[x]) {
            r += weight*at[0];
            g += weight*at[1];
            b += weight*at[2];
            at += 3;
        }
        out[0] = r;
        out[1] = g;
        out[2] = b;
    }
}
} // namespace

picture resized(const picture_view & from, int32_t width, int32_t height) {
    const line_weights columns(from.width, width), rows(from.height, height);
    const size_t each = (size_t) 3*width;
    size_t most = 0; // rows that one is made of
    for (const auto & of_one : rows.weights) { most = std::max(most, of_one.size()); }
    std::vector<float> narrowed(most*each); // the last of them, in turn
    std::vector<float> sum(each);
    picture out = { std::vector<uint8_t>(each*height), width, height };
    int32_t next = 0;
    for (int32_t y = 0; y < height; ++y) {
        const auto & weights = rows.weights[y];
        for (const int32_t end = rows.first[y] + (int32_t) weights.size(); next < end; ++next) {
            narrow_row(from, columns, next, narrowed.data() + next%most*each);
        }
        std::fill(sum.begin(), sum.end(), 0.5f);
        for (size_t i = 0; i < weights.size(); ++i) {
            const float * row = narrowed.data() + (rows.first[y] + i)%most*each;
            const float weight = weights[i];
            for (size_t x = 0; x < each; ++x) { sum[x] += weight*row[x]; }
        }
        uint8_t * to = out.rgb.data() + each*y;
        for (size_t x = 0; x < each; ++x) { to[x] = (uint8_t) std::clamp(sum[x], 0.0f, 255.0f); }
    }
    return out;
}

float worst_loss(const picture_view & whole, int32_t width, int32_t height, int32_t side) {
    const picture again = resized(resized(whole, width, height).view(), whole.width, whole.height);
    const int32_t across = (whole.width + side - 1)/side;
    int32_t worst = 0;
    std::vector<int32_t> lost(across);
    for (int32_t y = 0; y < whole.height; ++y) {
        if (y%side == 0) { std::fill(lost.begin(), lost.end(), 0); }
        const size_t row = (size_t) 3*whole.width*y;
        for (int32_t x = 0; x < whole.width; ++x) {
            const uint8_t * a = whole.rgb + row + 3*x;
            const uint8_t * b = again.rgb.data() + row + 3*x;
            const int32_t off = std::max({ std::abs(a[0] - b[0]), std::abs(a[1] - b[1]), std::abs(a[2] - b[2]) });
            worst = std::max(worst, lost[x/side] += off > lost_levels);
        }
    }
    return (float) worst/(side*side);
}

std::optional<picture> smallest(const picture_view & given, int32_t side, float loss, const tokens_of_size & n_tokens) {
    const size_t full = n_tokens(given.width, given.height);
    // what enters of it now: it may be larger than an encoder takes
    const double fits = std::min(1.0, std::sqrt((double) full*side*side/((double) given.width*given.height)));
    const auto whole_cells = [&](int32_t length, double factor) {
        return std::max<int32_t>(1, std::lround(length*factor/side))*side;
    };
    struct size { int32_t width, height; };
    const size now = { whole_cells(given.width, fits), whole_cells(given.height, fits) };

    std::vector<size> sizes; // ever fewer tokens
    size_t last = full;
    for (const double factor : { 0.92, 0.85, 0.78, 0.71, 0.64, 0.57, 0.5, 0.42, 0.33, 0.25 }) {
        const size next = { whole_cells(now.width, factor), whole_cells(now.height, factor) };
        const size_t n = n_tokens(next.width, next.height);
        if (n >= last) {
            continue;
        }
        sizes.push_back(next);
        last = n;
    }
    if (sizes.empty()) {
        return std::nullopt;
    }
    picture entering;
    if (now.width != given.width || now.height != given.height) { entering = resized(given, now.width, now.height); }
    const picture_view whole = entering.rgb.empty() ? given : entering.view();
    // a smaller one loses no less, so that each question halves the sizes that are left
    size_t allowed = 0, refused = sizes.size();
    while (allowed < refused) {
        const size_t middle = (allowed + refused)/2;
        if (worst_loss(whole, sizes[middle].width, sizes[middle].height, side) <= loss) {
            allowed = middle + 1;
        } else {
            refused = middle;
        }
    }
    if (allowed == 0) {
        return std::nullopt;
    }
    return resized(given, sizes[allowed - 1].width, sizes[allowed - 1].height);
}

} // namespace halfv
