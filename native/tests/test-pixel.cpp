// Patches dropped before the encoder: the rule against one that carries whole patches about, and what is made of it.
//   test-pixel [seed]

#include "check.h"
#include "halfv-pixel.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>
#include <utility>
#include <vector>

using ids   = std::vector<int32_t>;
using bytes = std::vector<uint8_t>;

static std::mt19937 rng;

static int upto(int lo, int hi) { return lo + (int) (rng() % (unsigned) (hi - lo + 1)); }

struct picture {
    int columns, rows, side;
    bytes rgb;

    uint8_t & at(int x, int y, int c) { return rgb[3*((size_t) y*columns*side + x) + c]; }

    bytes patch(int i) {
        bytes out;
        for (int y = 0; y < side; ++y) {
            for (int x = 0; x < 3*side; ++x) {
                out.push_back(at(i%columns*side + x/3, i/columns*side + y, x%3));
            }
        }
        return out;
    }
};

// Blocks of a few kinds of patch, as pages and screens have them, so that neighbours are often equal; then some noise.
static picture blocks(int columns, int rows, int side, int n_kinds, int noise) {
    picture p = { columns, rows, side, bytes((size_t) 3*columns*rows*side*side) };
    std::vector<bytes> kinds(n_kinds, bytes(3*side*side));
    for (auto & kind : kinds) {
        for (auto & value : kind) { value = upto(100, 103); }
    }
    ids kind_of(columns*rows, 0);
    for (int n = upto(0, 12); n > 0; --n) {
        const int x0 = upto(0, columns - 1), y0 = upto(0, rows - 1), x1 = upto(x0, columns - 1), y1 = upto(y0, rows - 1);
        const int kind = upto(0, n_kinds - 1);
        for (int y = y0; y <= y1; ++y) {
            for (int x = x0; x <= x1; ++x) { kind_of[y*columns + x] = kind; }
        }
    }
    for (int y = 0; y < rows*side; ++y) {
        for (int x = 0; x < columns*side; ++x) {
            const auto & kind = kinds[kind_of[y/side*columns + x/side]];
            for (int c = 0; c < 3; ++c) { p.at(x, y, c) = kind[3*(y%side*side + x%side) + c] + upto(0, noise); }
        }
    }
    return p;
}

static halfv::picture_levels levels_of(const picture & p) { return { p.columns, p.rows, p.side, { p.rgb } }; }

static std::vector<char> every(int columns, int rows) { return std::vector<char>(columns*rows, 1); }

static ids entering(const picture & p, float tau, ids * stands = nullptr) {
    return halfv::entering_patches(levels_of(p), every(p.columns, p.rows), tau, stands);
}

static ids in_blocks(const ids & entered, int columns, int rows) {
    return halfv::in_every_block(entered, columns, rows, halfv::pixel_block, every(columns, rows));
}

static bool near(const bytes & a, const bytes & b, float tau) {
    int furthest = 0;
    for (size_t i = 0; i < a.size(); ++i) { furthest = std::max(furthest, std::abs(a[i] - b[i])); }
    return furthest <= tau;
}

// what a patch at (x, y) is predicted to be, from a picture in which everything before it is there; empty: nothing
static bytes prediction(std::map<std::pair<int, int>, bytes> & seen, int x, int y, float tau) {
    const bool has_left = seen.count({ x - 1, y }), has_up = seen.count({ x, y - 1 });
    if (!has_left && !has_up) { return {}; }
    if (!has_left) { return seen[{ x, y - 1 }]; }
    if (!has_up)   { return seen[{ x - 1, y }]; }
    const bytes & left = seen[{ x - 1, y }], & up = seen[{ x, y - 1 }], & corner = seen[{ x - 1, y - 1 }];
    return near(corner, left, tau) && !near(corner, up, tau) ? up : left;
}

static void test_rule(picture p, float tau) {
    std::map<std::pair<int, int>, bytes> seen;
    ids expected;
    for (int i = 0; i < p.columns*p.rows; ++i) {
        const int x = i%p.columns, y = i/p.columns;
        const bytes guess = prediction(seen, x, y, tau);
        const bool enters = guess.empty() || !near(p.patch(i), guess, tau);
        if (enters) { expected.push_back(i); }
        seen[{ x, y }] = enters ? p.patch(i) : guess;
    }
    ids stands;
    const ids found = entering(p, tau, &stands);
    CHECK(found == expected);

    // nothing is lost but tau: the patches that entered, and where they were, give the picture back
    std::map<std::pair<int, int>, bytes> rebuilt;
    for (int i = 0; i < p.columns*p.rows; ++i) {
        const int x = i%p.columns, y = i/p.columns;
        const bool entered = std::binary_search(found.begin(), found.end(), i);
        const bytes patch = entered ? p.patch(i) : prediction(rebuilt, x, y, tau);
        CHECK(near(patch, p.patch(i), tau));
        CHECK(patch == p.patch(stands[i]));
        rebuilt[{ x, y }] = patch;
    }
}

static void test_rules() {
    for (int n = 0; n < 400; ++n) {
        const int noise = upto(0, 1);
        const picture p = blocks(upto(1, 9), upto(1, 9), upto(1, 3), upto(1, 4), noise);
        for (const float tau : { 0.0f, 0.5f, 1.0f, 2.0f, 2.5f, 255.0f }) { test_rule(p, tau); }
    }
    picture blank = blocks(7, 5, 2, 1, 0);
    CHECK(entering(blank, 0) == ids{ 0 });
    picture noisy = { 6, 4, 4, bytes(3*6*4*16) };
    for (auto & value : noisy.rgb) { value = upto(0, 255); }
    CHECK(entering(noisy, 0).size() == 24);

    // a slope of one level per patch: each is within 1 of its neighbour, but not of what stands for it
    picture slope = { 9, 1, 2, bytes(3*9*4) };
    for (int y = 0; y < 2; ++y) {
        for (int x = 0; x < 18; ++x) {
            for (int c = 0; c < 3; ++c) { slope.at(x, y, c) = 10 + x/2; }
        }
    }
    CHECK((entering(slope, 1) == ids{ 0, 2, 4, 6, 8 }));
    CHECK((entering(slope, 3) == ids{ 0, 4, 8 }));

    // a border between two colours is predicted along itself, whichever way it runs
    for (const bool across : { false, true }) {
        picture halves = { 6, 6, 1, bytes(3*36) };
        for (int i = 0; i < 36; ++i) {
            for (int c = 0; c < 3; ++c) { halves.rgb[3*i + c] = (across ? i/6 : i%6) < 3 ? 20 : 200; }
        }
        CHECK(entering(halves, 0).size() == 2);
    }
}

// an encoder file can say that image_std is 0, and then no pixel is a number
static void test_not_a_number() {
    const float mean[3] = { 0.5f, 0.5f, 0.5f }, none[3] = { 0, 0, 0 }, one[3] = { 1, 1, 1 };
    const float inf = std::numeric_limits<float>::infinity();
    for (float value : { inf, -inf, std::numeric_limits<float>::quiet_NaN() }) {
        for (const float * deviation : { none, one }) {
            halfv::seen_frames seen;
            halfv::picture_pixels pixels = { 2, 2, 2, { std::vector<float>(3*4*4, value) } };
            CHECK(halfv::prune_pixels(pixels, mean, deviation, { 0, 0 }, seen).whole() && pixels.frames[0].size() == 3*4*4);
        }
    }
}

// one patch of each 2 x 2 at least, the lower right one where there is none
static void test_blocks() {
    CHECK((in_blocks({ 0 }, 3, 3) == ids{ 0, 5, 7, 8 }));
    CHECK((in_blocks({ 0, 1, 5 }, 8, 2) == ids{ 0, 1, 5, 11, 15 }));
    CHECK((in_blocks({ 0 }, 1, 5) == ids{ 0, 3, 4 }));
    for (int n = 0; n < 200; ++n) {
        const int columns = upto(1, 13), rows = upto(1, 13);
        ids entered = { 0 };
        for (int i = 1; i < columns*rows; ++i) {
            if (upto(0, 20) == 0) { entered.push_back(i); }
        }
        const ids found = in_blocks(entered, columns, rows);
        CHECK(std::includes(found.begin(), found.end(), entered.begin(), entered.end()));
        std::map<std::pair<int, int>, int> before, after;
        for (const int i : entered) { ++before[{ i/columns/2, i%columns/2 }]; }
        for (const int i : found)   { ++after[{ i/columns/2, i%columns/2 }]; }
        CHECK((int) after.size() == (columns + 1)/2*((rows + 1)/2));
        for (const auto & [block, count] : after) { CHECK(count == std::max(1, before[block])); }
    }
}

// every level of 8 bits is found again in normalised floats, and the strip holds the pixels unchanged
static void test_pixels() {
    const float means[][3] = { { 0.48145466f, 0.4578275f, 0.40821073f }, { 0.5f, 0.5f, 0.5f }, { 0, 0, 0 } };
    const float deviations[][3] = { { 0.26862954f, 0.26130258f, 0.27577711f }, { 0.5f, 0.5f, 0.5f }, { 1, 1, 1 } };
    for (int n = 0; n < 60; ++n) {
        picture p = blocks(upto(1, 8), upto(1, 8), upto(1, 4), 3, n%2);
        if (n < 3) {
            for (size_t i = 0; i < p.rgb.size(); ++i) { p.rgb[i] = i/3 % 256; }
        }
        const float * mean = means[n%3], * deviation = deviations[n%3];
        std::vector<float> whole(p.rgb.size());
        for (size_t i = 0; i < whole.size(); ++i) { whole[i] = ((float) p.rgb[i]/255.0f - mean[i%3])/deviation[i%3]; }
        const float tau = upto(0, 2);
        const ids expected = in_blocks(entering(p, tau), p.columns, p.rows);

        halfv::seen_frames seen;
        halfv::picture_pixels given = { p.columns, p.rows, p.side, { whole } };
        const auto map = halfv::prune_pixels(given, mean, deviation, { tau, -1.0f }, seen);
        const auto & pixels = given.frames[0];
        CHECK(map.columns == p.columns && map.rows == p.rows);
        if (10*(p.columns*p.rows - (int) expected.size()) < p.columns*p.rows) { // few repeat
            CHECK(map.whole() && !map.valid() && pixels == whole);
            continue;
        }
        CHECK(map.entered == expected && map.valid());
        const int wide = (int) expected.size()*p.side;
        CHECK(pixels.size() == (size_t) 3*wide*p.side);
        for (int y = 0; y < p.side; ++y) {
            for (int x = 0; x < 3*wide; ++x) {
                const int from = expected[x/3/p.side];
                const size_t place = (size_t) (from/p.columns*p.side + y)*p.columns*p.side + from%p.columns*p.side + x/3%p.side;
                CHECK(pixels[(size_t) 3*wide*y + x] == whole[3*place + x%3]);
            }
        }
    }
}

static std::vector<float> floats_of(const picture & p) {
    std::vector<float> out(p.rgb.size());
    for (size_t i = 0; i < out.size(); ++i) { out[i] = (float) p.rgb[i]/255.0f; }
    return out;
}

// Frames one after the other, with what is remembered kept as whole patches, place by place.
struct watched {
    float tau, tau_frames;
    std::map<int, std::vector<bytes>> seen; // of both frames
    std::map<int, std::vector<bytes>> stands; // the patch that entered, for each place

    ids next(std::vector<picture> & frames) {
        picture & p = frames[0];
        const auto both = [&](int i) { return std::vector<bytes>{ frames.front().patch(i), frames.back().patch(i) }; };
        const auto close = [](const std::vector<bytes> & a, const std::vector<bytes> & b, float t) { return near(a[0], b[0], t) && near(a[1], b[1], t); };
        const int n = p.columns*p.rows;
        std::map<int, int> stand; // of what changed
        ids out;
        std::map<int, int> in_block, in_cell;
        for (int i = 0; i < n; ++i) {
            const int x = i%p.columns;
            if (tau_frames >= 0 && seen.count(i) && close(seen[i], both(i), tau_frames)) { continue; }
            const int left = x > 0 && stand.count(i - 1) ? stand[i - 1] : -1, up = stand.count(i - p.columns) ? stand[i - p.columns] : -1;
            const int corner = x > 0 && stand.count(i - p.columns - 1) ? stand[i - p.columns - 1] : -1;
            int guess = left < 0 ? up : left;
            if (left >= 0 && up >= 0 && corner >= 0 && close(both(corner), both(left), tau) && !close(both(corner), both(up), tau)) { guess = up; }
            stand[i] = tau >= 0 && guess >= 0 && close(both(i), both(guess), tau) ? guess : i;
            if (stand[i] == i) { out.push_back(i); }
        }
        const auto fill = [&](int block, bool changed_only) {
            const ids there = out;
            for (int y = 0; y < p.rows; y += block) {
                for (int x = 0; x < p.columns; x += block) {
                    int last = -1;
                    bool has = false;
                    for (int i = 0; i < n; ++i) {
                        if (i/p.columns < y || i/p.columns >= y + block || i%p.columns < x || i%p.columns >= x + block) { continue; }
                        has = has || std::count(there.begin(), there.end(), i);
                        if (!changed_only || stand.count(i)) { last = i; }
                    }
                    if (!has && last >= 0) { out.push_back(last); }
                }
            }
        };
        fill(2, true);
        fill(8, false);
        if (10*(n - (int) out.size()) < n) {
            out.clear();
            for (int i = 0; i < n; ++i) { out.push_back(i); }
        }
        std::sort(out.begin(), out.end());
        for (int i = 0; i < n; ++i) {
            const bool enters = std::binary_search(out.begin(), out.end(), i);
            if (enters || stand.count(i)) { seen[i] = both(i); }
            if (enters) { stands[i] = both(i); } else if (stand.count(i)) { stands[i] = both(stand[i]); }
            // however long a scene goes on, what stands for a patch is no further than both bounds together
            CHECK(close(stands[i], both(i), std::max(tau, 0.0f) + std::max(tau_frames, 0.0f)));
        }
        return out;
    }
};

static void change(picture & p, int noise) {
    for (int n = upto(0, 3); n > 0; --n) {
        const int x = upto(0, p.columns*p.side - 1), y = upto(0, p.rows*p.side - 1), size = upto(1, 2*p.side);
        for (int dy = 0; dy < size && y + dy < p.rows*p.side; ++dy) {
            for (int dx = 0; dx < size && x + dx < p.columns*p.side; ++dx) {
                for (int c = 0; c < 3; ++c) { p.at(x + dx, y + dy, c) = 100 + n; }
            }
        }
    }
    for (auto & value : p.rgb) { value += noise && upto(0, 9) == 0; }
}

static void test_frames() {
    const float mean[3] = { 0, 0, 0 }, deviation[3] = { 1, 1, 1 };
    for (int n = 0; n < 300; ++n) {
        watched rule = { (float) upto(-1, 2), (float) upto(-1, 3), {}, {} };
        picture p = blocks(upto(1, 12), upto(1, 10), upto(1, 2), 3, n%2);
        halfv::seen_frames seen;
        for (int frame = 0; frame < 6; ++frame) {
            std::vector<picture> frames = { p };
            if (upto(0, 2) == 0) { // two that are encoded as one
                change(p, n%2);
                frames.push_back(p);
            }
            halfv::picture_pixels pixels = { p.columns, p.rows, p.side, {} };
            for (const auto & f : frames) { pixels.frames.push_back(floats_of(f)); }
            const auto before = pixels.frames;
            const auto map = halfv::prune_pixels(pixels, mean, deviation, { rule.tau, rule.tau_frames }, seen);
            const ids expected = rule.next(frames);
            CHECK(map.whole() ? (int) expected.size() == p.columns*p.rows : map.valid() && map.entered == expected);
            if (map.whole()) { CHECK(pixels.frames == before); }
            for (size_t f = 0; f < frames.size() && !map.whole(); ++f) {
                CHECK(pixels.frames[f].size() == 3*p.side*p.side*expected.size());
                const int last = expected.back(), wide = 3*p.side*(int) expected.size();
                CHECK(pixels.frames[f][wide - 1] == (float) frames[f].at(last%p.columns*p.side + p.side - 1, last/p.columns*p.side, 2)/255.0f);
            }
            change(p, n%2);
        }
    }

    // the same again costs one patch of each 8 x 8
    picture noisy = { 17, 9, 2, bytes(3*17*9*4) };
    for (auto & value : noisy.rgb) { value = upto(0, 255); }
    halfv::seen_frames seen;
    const auto entered = [&](const picture & p, int columns, int rows) {
        halfv::picture_pixels pixels = { columns, rows, p.side, { floats_of(p) } };
        const auto map = halfv::prune_pixels(pixels, mean, deviation, { -1, 0 }, seen);
        return map.whole() ? columns*rows : (int) map.entered.size();
    };
    CHECK(entered(noisy, 17, 9) == 17*9 && entered(noisy, 17, 9) == 6 && entered(noisy, 17, 9) == 6);
    noisy.at(5, 5, 1) ^= 128;
    CHECK(entered(noisy, 17, 9) == 6); // the changed patch is the one of its cell
    CHECK(entered(noisy, 9, 17) == 17*9 && entered(noisy, 9, 17) == 6); // of another shape: nothing to compare with
    seen.forget();
    CHECK(entered(noisy, 9, 17) == 17*9);

    // a slow change comes through as soon as it has gone further than tau from what was seen
    picture slow = { 8, 8, 1, bytes(3*64, 50) };
    halfv::seen_frames slowly;
    ids counts;
    for (int frame = 0; frame < 7; ++frame) {
        slow.at(3, 3, 0) = 50 + frame;
        halfv::picture_pixels pixels = { 8, 8, 1, { floats_of(slow) } };
        const auto map = halfv::prune_pixels(pixels, mean, deviation, { -1, 2 }, slowly);
        counts.push_back(map.whole() ? 64 : std::count(map.entered.begin(), map.entered.end(), 27));
    }
    CHECK((counts == ids{ 64, 0, 0, 1, 0, 0, 1 }));
}

static void test_windows() {
    for (int n = 0; n < 200; ++n) {
        halfv::patch_map map = { upto(1, 9), upto(1, 9), {} };
        for (int i = 0; i < map.columns*map.rows; ++i) {
            if (upto(0, 2) > 0) { map.entered.push_back(i); }
        }
        const int window = upto(1, 5), merge = upto(1, 2);
        const auto windows = halfv::group_patches(map, window);

        std::vector<ids> expected;
        for (int y = 0; y < map.rows; y += window) {
            for (int x = 0; x < map.columns; x += window) {
                ids members;
                for (size_t i = 0; i < map.entered.size(); ++i) {
                    const int dx = map.entered[i]%map.columns - x, dy = map.entered[i]/map.columns - y;
                    if (dx >= 0 && dx < window && dy >= 0 && dy < window) {
                        members.push_back(i);
                    }
                }
                if (!members.empty()) { expected.push_back(members); }
            }
        }
        const auto & order = windows.order;
        std::vector<ids> found;
        size_t at = 0;
        for (const int length : windows.lengths) {
            CHECK(found.empty() || (int) found.back().size() >= length);
            found.emplace_back(order.begin() + at, order.begin() + at + length);
            at += length;
        }
        CHECK(at == map.entered.size() && at == order.size());
        std::sort(found.begin(), found.end());
        std::sort(expected.begin(), expected.end());
        CHECK(found == expected);
        for (size_t i = 0; i < order.size(); ++i) { CHECK(windows.place[order[i]] == (int) i); }

        const int each = merge*merge, count = (int) order.size()*each;
        const auto mask = halfv::window_mask(windows, merge);
        CHECK(mask.size() == (size_t) count*count);
        for (int q = 0; q < count; ++q) {
            for (int k = 0; k < count; ++k) {
                const int a = map.entered[order[q/each]], b = map.entered[order[k/each]];
                const bool same = a/map.columns/window == b/map.columns/window && a%map.columns/window == b%map.columns/window;
                CHECK(mask[(size_t) q*count + k] == (same ? 0.0f : std::numeric_limits<float>::lowest()));
            }
        }

        const ids plain = halfv::patch_positions(map, merge), grouped = halfv::patch_positions(map, merge, &windows.order);
        for (int q = 0; q < count; ++q) {
            for (const bool is_grouped : { false, true }) {
                const ids & positions = is_grouped ? grouped : plain;
                const int i = map.entered[is_grouped ? order[q/each] : q/each];
                const int y = i/map.columns*merge + q%each/merge, x = i%map.columns*merge + q%merge;
                CHECK(positions[q] == y && positions[count + q] == x && positions[2*count + q] == y && positions[3*count + q] == x);
            }
        }
    }
}

static void test_valid() {
    const auto valid = [](int columns, int rows, ids entered) { return halfv::patch_map{ columns, rows, std::move(entered) }.valid(); };
    CHECK(valid(3, 2, { 0 }) && valid(3, 2, { 0, 1, 5 }) && valid(1 << 20, 1 << 20, { 0, 1 << 30 }));
    CHECK(!valid(3, 2, {}) && !valid(3, 2, { 6 }) && !valid(3, 2, { -1, 2 }) && !valid(3, 2, { 2, 2 }) && !valid(3, 2, { 2, 1 }));
    CHECK(!valid(0, 2, { 0 }) && !valid(-3, -2, { 0 }));
}

int main(int argc, char ** argv) {
    seed = argc > 1 ? (unsigned) atoi(argv[1]) : 1;
    rng.seed(seed);
    test_not_a_number();
    test_rules();
    test_blocks();
    test_pixels();
    test_frames();
    test_windows();
    test_valid();
    if (n_failed > 0) {
        fprintf(stderr, "%d checks failed\n", n_failed);
        return 1;
    }
    printf("test-pixel: ok\n");
    return 0;
}
