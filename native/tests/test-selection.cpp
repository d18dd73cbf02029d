// Selection against float64 brute force, on random inputs.
//   test-selection [seed]

#include "check.h"
#include "halfv-selection.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

using ids = std::vector<int32_t>;

static const float NaN = std::numeric_limits<float>::quiet_NaN();
static const float Inf = std::numeric_limits<float>::infinity();

struct randoms {
    std::mt19937 rng;
    explicit randoms(unsigned salt) : rng(seed * 1000003u + salt) {}
    int upto(int lo, int hi) { return lo + (int) (rng() % (unsigned) (hi - lo + 1)); }
    std::vector<float> normal(size_t n, float scale = 1) {
        std::normal_distribution<float> d;
        std::vector<float> v(n);
        for (float & x : v) {
            x = d(rng) * scale;
        }
        return v;
    }
    // every dot product of such rows is exact, and many are equal
    std::vector<float> integers(size_t n) {
        std::vector<float> v(n);
        for (float & x : v) {
            x = (float) upto(-2, 2);
        }
        return v;
    }
    ids choice(int n, int k) {
        ids v(n);
        std::iota(v.begin(), v.end(), 0);
        std::shuffle(v.begin(), v.end(), rng);
        v.resize(k);
        return v;
    }
};

static std::vector<double> exact_gram(const std::vector<float> & f, int n, int d) {
    std::vector<double> g((size_t) n * n);
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < n; ++j) {
            for (int x = 0; x < d; ++x) {
                g[(size_t) i * n + j] += (double) f[(size_t) i * d + x] * f[(size_t) j * d + x];
            }
        }
    }
    return g;
}

// farthest-point sampling to the letter; gap: the smallest lead of a winner over the runner-up
static ids brute_cover(const std::vector<double> & g, int n, const ids & anchors, int k, double * gap = nullptr) {
    ids chosen(anchors);
    double least = INFINITY;
    while ((int) chosen.size() < k) {
        int best = -1;
        double best_distance = -INFINITY, second = -INFINITY;
        for (int i = 0; i < n; ++i) {
            if (std::find(chosen.begin(), chosen.end(), i) != chosen.end()) {
                continue;
            }
            double distance = INFINITY;
            for (int32_t c : chosen) {
                distance = std::min(distance, 1 - g[(size_t) i * n + c]);
            }
            if (best < 0 || distance > best_distance) {
                second = best < 0 ? second : best_distance;
                best = i;
                best_distance = distance;
            } else {
                second = std::max(second, distance);
            }
        }
        if (!chosen.empty()) {
            least = std::min(least, best_distance - second);
        }
        chosen.push_back(best);
    }
    std::sort(chosen.begin(), chosen.end());
    if (gap) {
        *gap = least;
    }
    return chosen;
}

static std::vector<float> narrow(const std::vector<double> & v) {
    return std::vector<float>(v.begin(), v.end());
}

static bool is_selection(const ids & v, int n, size_t size) {
    return v.size() == size && std::is_sorted(v.begin(), v.end()) && std::set<int32_t>(v.begin(), v.end()).size() == size &&
           (v.empty() || (v.front() >= 0 && v.back() < n));
}

static bool contains(const ids & v, ids part) {
    std::sort(part.begin(), part.end());
    return std::includes(v.begin(), v.end(), part.begin(), part.end());
}

static void test_quota() {
    CHECK(halfv::quota(1024, 0.25f) == 256);
    CHECK(halfv::quota(1000, 0.05f) == 50);
    CHECK(halfv::quota(100, 0.2f) == 20);
    for (int percent = 1; percent < 100; ++percent) { // most floats are a little less or more than what was written
        for (int n = 1; n <= 16384; n += n < 400 ? 1 : 97) {
            CHECK(halfv::quota(n, percent/100.0f) == n*percent/100);
        }
    }
    CHECK(halfv::quota(999, 0.1f) == 99);
    CHECK(halfv::quota(7, 0.0f) == 0);
    CHECK(halfv::quota(7, 1.0f) == 7);
    CHECK(halfv::quota(7, 2.0f) == 7);
    CHECK(halfv::quota(7, -1.0f) == 0);
    CHECK(halfv::quota(7, NaN) == 0);
    CHECK(halfv::quota(7, Inf) == 7);
    CHECK(halfv::quota(0, 0.5f) == 0);
    CHECK(halfv::quota(-3, 0.5f) == 0);
}

static void test_scores() {
    randoms r(1);
    for (int round = 0; round < 40; ++round) {
        const int n = r.upto(1, 90), n_head_kv = r.upto(1, 4), n_head = n_head_kv * r.upto(1, 7), d = r.upto(1, 80);
        const size_t width = (size_t) n_head_kv * d, stride = width + r.upto(0, 9);
        const std::vector<float> q = r.normal((size_t) n_head * d), k = r.normal(stride * n);
        std::vector<float> out(n, -1);
        halfv::visual_scores(q.data(), k.data(), stride, n, n_head, n_head_kv, d, out.data());
        std::vector<double> want(n, 0);
        for (int h = 0; h < n_head; ++h) {
            std::vector<double> w(n, 0);
            for (int i = 0; i < n; ++i) {
                for (int x = 0; x < d; ++x) {
                    w[i] += (double) q[(size_t) h * d + x] * k[i * stride + (size_t) (h / (n_head / n_head_kv)) * d + x];
                }
            }
            const double top = *std::max_element(w.begin(), w.end());
            double sum = 0;
            for (double & x : w) {
                sum += x = std::exp(x - top);
            }
            for (int i = 0; i < n; ++i) {
                want[i] += w[i] / sum / n_head;
            }
        }
        double worst = 0;
        for (int i = 0; i < n; ++i) {
            worst = std::max(worst, std::fabs(out[i] - want[i]));
        }
        CHECK(worst < 1e-5);
        CHECK(std::fabs(std::accumulate(out.begin(), out.end(), 0.0) - 1) < 1e-5);
    }
}

static void test_scores_edges() {
    const float q[4] = { 1, 2, 3, 4 }, k[6] = { 1, 0, 0, 1, 1, 1 };
    float out[3] = { 9, 9, 9 };
    halfv::visual_scores(q, k, 2, 0, 2, 1, 2, out);
    CHECK(out[0] == 9);
    halfv::visual_scores(q, k, 2, 3, 3, 2, 2, out); // heads that do not divide
    CHECK(out[0] == 0 && out[1] == 0 && out[2] == 0);
    halfv::visual_scores(q, k, 2, 3, 0, 0, 2, out);
    CHECK(out[0] == 0 && out[1] == 0 && out[2] == 0);
    halfv::visual_scores(q, k, 2, 1, 2, 1, 2, out);
    CHECK(out[0] == 1);

    const float broken_key[6] = { NaN, 0, 0, 1, 1, 1 };
    halfv::visual_scores(q, broken_key, 2, 3, 2, 1, 2, out);
    CHECK(out[0] == 0 && std::fabs(out[1] + out[2] - 1) < 1e-6f);

    const float broken_head[4] = { Inf, Inf, 3, 4 }; // only the second head has a say
    float want[3];
    halfv::visual_scores(broken_head + 2, k, 2, 3, 1, 1, 2, want);
    halfv::visual_scores(broken_head, k, 2, 3, 2, 1, 2, out);
    CHECK(std::equal(out, out + 3, want));

    const float far[4] = { 1e30f, 0, 1e30f, 0 };
    halfv::visual_scores(far, k, 2, 3, 2, 1, 2, out);
    CHECK(out[0] == 0.5f && out[1] == 0 && out[2] == 0.5f);
}

static void test_top_k() {
    randoms r(2);
    for (int round = 0; round < 200; ++round) {
        const int n = r.upto(0, 60), k = r.upto(-1, 65);
        std::vector<float> s = round % 2 ? r.normal(n) : r.integers(n);
        for (float & x : s) {
            const int what = r.upto(0, 19);
            x = what == 0 ? NaN : what == 1 ? Inf : what == 2 ? -Inf : x;
        }
        const ids skip = r.choice(n, r.upto(0, n) / 2);
        ids order;
        for (int i = 0; i < n; ++i) {
            if (std::find(skip.begin(), skip.end(), i) == skip.end()) {
                order.push_back(i);
            }
        }
        const auto value = [&](int32_t i) { return s[i] == s[i] ? s[i] : -Inf; };
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return value(a) > value(b); });
        order.resize(std::min((int) order.size(), std::max(k, 0)));
        std::sort(order.begin(), order.end());
        CHECK(halfv::top_k(s.data(), n, k, skip) == order);
    }
    const float s[3] = { 1, 3, 2 };
    CHECK(halfv::top_k(s, 3, 2) == (ids{ 1, 2 }));
    CHECK(halfv::top_k(s, 3, 1, { 1, 1, -5, 99 }) == (ids{ 2 }));
    CHECK(halfv::top_k(nullptr, 0, 3).empty());
    CHECK(halfv::top_k(nullptr, -1, 3).empty());
}

static void test_features() {
    randoms r(3);
    for (int round = 0; round < 30; ++round) {
        const int n = r.upto(1, 20), d = r.upto(1, 100);
        const std::vector<float> rows = r.normal((size_t) n * d), w = r.normal(d);
        std::vector<float> out(rows.size()), same = rows, plain(rows.size());
        halfv::final_norm_features(rows.data(), w.data(), n, d, out.data());
        halfv::final_norm_features(same.data(), w.data(), n, d, same.data());
        halfv::final_norm_features(rows.data(), nullptr, n, d, plain.data());
        CHECK(out == same);
        double worst = 0;
        for (int i = 0; i < n; ++i) {
            const float * x = &rows[(size_t) i * d];
            double mean = 0, norm = 0, norm_plain = 0;
            for (int j = 0; j < d; ++j) {
                mean += (double) x[j] * x[j] / d;
            }
            std::vector<double> y(d);
            for (int j = 0; j < d; ++j) {
                y[j] = x[j] / std::sqrt(mean + 1e-6) * w[j]; // the eps is left out by ours, and makes no difference
                norm += y[j] * y[j];
                norm_plain += (double) x[j] * x[j];
            }
            for (int j = 0; j < d; ++j) {
                worst = std::max(worst, std::fabs(out[(size_t) i * d + j] - y[j] / std::sqrt(norm)));
                worst = std::max(worst, std::fabs(plain[(size_t) i * d + j] - x[j] / std::sqrt(norm_plain)));
            }
        }
        CHECK(worst < 1e-6);
    }
    const float rows[12] = { 0, 0, 0, NaN, 1, 2, Inf, 1, 2, 1e30f, 1, 2 }, w[3] = { 1, 1, 1 };
    float out[12];
    halfv::final_norm_features(rows, w, 4, 3, out);
    CHECK(std::count(out, out + 12, 0.0f) == 12);
    halfv::final_norm_features(nullptr, nullptr, 0, 3, nullptr);
}

static void test_cover_exact() {
    randoms r(4);
    for (int round = 0; round < 120; ++round) {
        const int n = r.upto(1, round % 4 ? 60 : 260), d = r.upto(1, 70), k = r.upto(0, n);
        std::vector<float> f = r.integers((size_t) n * d);
        if (round % 5 == 0) { // repeated rows
            for (int i = 1; i < n; i += 2) {
                std::copy_n(&f[(size_t) (i / 2) * d], d, &f[(size_t) i * d]);
            }
        }
        const ids anchors = r.choice(n, r.upto(0, k));
        const std::vector<double> g = exact_gram(f, n, d);
        const ids want = brute_cover(g, n, anchors, k);
        CHECK(is_selection(want, n, k));
        CHECK(halfv::cover(f.data(), n, d, anchors, k) == want);
        CHECK(halfv::cover(f.data(), n, d, anchors, k, 3) == want);
        CHECK(halfv::cover_gram(narrow(g).data(), n, anchors, k) == want);
    }
}

// as in use: normalised, alike and unlike; the rounding of float may only decide where float64 nearly ties
static void test_cover_features() {
    randoms r(5);
    int compared = 0;
    for (int round = 0; round < 60; ++round) {
        const int n = r.upto(2, 250), d = r.upto(8, 200), k = r.upto(1, n);
        std::vector<float> f = r.normal((size_t) n * d, 0.4f);
        if (round % 2) {
            const int n_centre = 1 + n / 10;
            const std::vector<float> centre = r.normal((size_t) n_centre * d);
            for (int i = 0; i < n; ++i) {
                const float * c = &centre[(size_t) r.upto(0, n_centre - 1) * d];
                for (int x = 0; x < d; ++x) {
                    f[(size_t) i * d + x] += c[x];
                }
            }
        }
        halfv::final_norm_features(f.data(), nullptr, n, d, f.data());
        const ids anchors = r.choice(n, r.upto(0, k) / 4);
        const std::vector<double> g = exact_gram(f, n, d);
        double gap = 0;
        const ids want = brute_cover(g, n, anchors, k, &gap);
        const ids got = halfv::cover(f.data(), n, d, anchors, k);
        CHECK(is_selection(got, n, k));
        CHECK(contains(got, anchors));
        CHECK(halfv::cover(f.data(), n, d, anchors, k, 2) == got);
        if (gap > 1e-6) {
            ++compared;
            CHECK(got == want);
            CHECK(halfv::cover_gram(narrow(g).data(), n, anchors, k) == want);
        }
    }
    CHECK(compared > 20);
}

static void test_cover_edges() {
    const float f[8] = { 1, 0, 0, 1, -1, 0, 0, -1 };
    const std::vector<float> g = narrow(exact_gram(std::vector<float>(f, f + 8), 4, 2));
    struct {
        int n;
        ids anchors;
        int k;
        ids want;
    } cases[] = {
        { 0, {}, 3, {} },
        { -1, { 0 }, 3, {} },
        { 1, {}, 0, {} },
        { 1, {}, 1, { 0 } },
        { 1, {}, 9, { 0 } },
        { 4, {}, -2, {} },
        { 4, {}, 2, { 0, 2 } },
        { 4, { 1 }, 2, { 1, 3 } },
        { 4, {}, 4, { 0, 1, 2, 3 } },
        { 4, {}, 99, { 0, 1, 2, 3 } },
        { 4, { 3, 1, 2 }, 2, { 1, 2, 3 } },     // more anchors than k: all stay
        { 4, { 1, 1, 1, -7, 4 }, 2, { 1, 3 } }, // repeated and out of range
    };
    for (const auto & c : cases) {
        CHECK(halfv::cover(f, c.n, 2, c.anchors, c.k) == c.want);
        CHECK(halfv::cover_gram(g.data(), c.n, c.anchors, c.k) == c.want);
    }
    CHECK(halfv::cover(f, 4, 0, { 1 }, 2).empty());
    CHECK(halfv::cover(f, 4, 2, {}, 2, 0) == (ids{ 0, 2 }));
    CHECK(halfv::cover(f, 4, 2, {}, 2, -3) == (ids{ 0, 2 }));
    CHECK(halfv::cover(f, 4, 2, {}, 2, 1, [] { return false; }) == (ids{ 0, 2 }));
    CHECK(halfv::cover(f, 4, 2, {}, 2, 1, [] { return true; }).empty());

    // all alike: by index
    const std::vector<float> same(300 * 5, 0.25f);
    ids first(100);
    std::iota(first.begin(), first.end(), 0);
    CHECK(halfv::cover(same.data(), 300, 5, {}, 100) == first);
    CHECK(halfv::cover(std::vector<float>(300 * 5, 0.0f).data(), 300, 5, {}, 100) == first);
    CHECK(halfv::cover(std::vector<float>(300 * 5, NaN).data(), 300, 5, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, NaN).data(), 300, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, Inf).data(), 300, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, -Inf).data(), 300, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, -0.0f).data(), 300, {}, 100) == first);

    // -0 and 0 are equally near
    const float zeros[3] = { 1, 0, -0.0f };
    const float zeros_gram[9] = { 1, 0, -0.0f, 0, 0, 0, -0.0f, 0, 0 };
    CHECK(halfv::cover(zeros, 3, 1, { 0 }, 2) == (ids{ 0, 1 }));
    CHECK(halfv::cover_gram(zeros_gram, 3, { 0 }, 2) == (ids{ 0, 1 }));
}

// rows that are not finite: a full selection, the same from features and from their Gram matrix
static void test_cover_not_finite() {
    randoms r(6);
    for (int round = 0; round < 60; ++round) {
        const int n = r.upto(2, 200), d = r.upto(1, 20), k = r.upto(1, n);
        const bool overflows = round % 2;
        std::vector<float> f = r.integers((size_t) n * d);
        for (int i = r.upto(1, 1 + n / 2); i > 0; --i) {
            const float odd[4] = { NaN, Inf, -Inf, 3e38f };
            f[r.upto(0, n * d - 1)] = odd[r.upto(0, overflows ? 3 : 2)];
        }
        std::vector<float> g((size_t) n * n, 0);
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j < n; ++j) {
                for (int x = 0; x < d; ++x) {
                    g[(size_t) i * n + j] += f[(size_t) i * d + x] * f[(size_t) j * d + x];
                }
            }
        }
        const ids anchors = r.choice(n, r.upto(0, k));
        const ids got = halfv::cover(f.data(), n, d, anchors, k);
        CHECK(is_selection(got, n, k));
        CHECK(contains(got, anchors));
        CHECK(is_selection(halfv::cover_gram(g.data(), n, anchors, k), n, k));
        if (!overflows) { // else the order of a sum decides between infinity and NaN
            CHECK(halfv::cover_gram(g.data(), n, anchors, k) == got);
        }
    }
}

static void test_groups() {
    randoms r(7);
    for (int round = 0; round < 300; ++round) {
        const int n = r.upto(1, 400), group_max = r.upto(1, 90), k = r.upto(0, n);
        ids anchors = r.choice(n, r.upto(0, k));
        if (round % 3 == 0) { // crowded
            std::sort(anchors.begin(), anchors.end());
            std::iota(anchors.begin(), anchors.end(), r.upto(0, n - (int) anchors.size()));
        }
        const auto groups = halfv::cover_groups(n, anchors, k, group_max);
        int next = 0, sum = 0, smallest = n, largest = 0;
        int64_t least_given = n, most_refused = -1; // remainders
        ids seen;
        const bool crowded = std::any_of(groups.begin(), groups.end(), [&](const halfv::cover_group & g) {
            return (int64_t) g.anchors.size() * n > (int64_t) k * g.count;
        });
        for (const auto & g : groups) {
            CHECK(g.first == next);
            CHECK(g.count >= 1 && g.count <= group_max);
            CHECK(g.k >= (int) g.anchors.size() && g.k <= g.count);
            next += g.count;
            sum += g.k;
            smallest = std::min(smallest, g.count);
            largest = std::max(largest, g.count);
            const int64_t share = (int64_t) k * g.count, extra = g.k - share / n;
            CHECK(crowded || (extra >= 0 && extra <= 1));
            if (extra > 0) {
                least_given = std::min(least_given, share % n);
            } else {
                most_refused = std::max(most_refused, share % n);
            }
            for (int32_t a : g.anchors) {
                CHECK(a >= 0 && a < g.count);
                seen.push_back(g.first + a);
            }
        }
        std::sort(anchors.begin(), anchors.end());
        CHECK(next == n);
        CHECK(sum == k);
        CHECK(largest - smallest <= 1);
        CHECK((int) groups.size() == (n + group_max - 1) / group_max);
        CHECK(seen == anchors);
        CHECK(crowded || least_given >= most_refused);
    }
    CHECK(halfv::cover_groups(0, {}, 3).empty());
    CHECK(halfv::cover_groups(5, {}, 3, 0).empty());
    CHECK(halfv::cover_groups(5, { 0, 1, 2, 3 }, 2, 2).size() == 3);
}

static void test_cover_grouped() {
    randoms r(8);
    const int n = 2 * halfv::cover_group_max + r.upto(1, 300), d = 6, k = r.upto(30, 200);
    const std::vector<float> f = r.integers((size_t) n * d);
    const ids anchors = r.choice(n, k / 5);
    ids want;
    for (const auto & g : halfv::cover_groups(n, anchors, k)) {
        CHECK(g.count <= halfv::cover_group_max);
        for (int32_t i : halfv::cover(&f[(size_t) g.first * d], g.count, d, g.anchors, g.k)) {
            want.push_back(g.first + i);
        }
    }
    const ids got = halfv::cover(f.data(), n, d, anchors, k, 2);
    CHECK(is_selection(got, n, k));
    CHECK(contains(got, anchors));
    CHECK(got == want);
}

// prepared mode: coverage without a question first, its anchors added later
static void test_anchors_later() {
    randoms r(9);
    for (int round = 0; round < 30; ++round) {
        const int n = r.upto(10, 120), d = r.upto(2, 40), k = r.upto(2, n), n_anchors = r.upto(0, k) / 3;
        const std::vector<float> f = r.normal((size_t) n * d), scores = r.normal(n);
        const ids covered = halfv::cover(f.data(), n, d, {}, k - n_anchors);
        const ids added = halfv::top_k(scores.data(), n, n_anchors, covered);
        ids both(covered);
        both.insert(both.end(), added.begin(), added.end());
        std::sort(both.begin(), both.end());
        CHECK(is_selection(both, n, k));
        // the cover so far is a prefix: going on from it is the same as never having stopped
        CHECK(halfv::cover(f.data(), n, d, covered, k) == halfv::cover(f.data(), n, d, {}, k));
    }
}

int main(int argc, char ** argv) {
    seed = argc > 1 ? (unsigned) strtoul(argv[1], nullptr, 10) : std::random_device{}();
    const struct {
        const char * name;
        void (*run)();
    } tests[] = {
        { "quota", test_quota },
        { "scores", test_scores },
        { "scores_edges", test_scores_edges },
        { "top_k", test_top_k },
        { "features", test_features },
        { "cover_exact", test_cover_exact },
        { "cover_features", test_cover_features },
        { "cover_edges", test_cover_edges },
        { "cover_not_finite", test_cover_not_finite },
        { "groups", test_groups },
        { "cover_grouped", test_cover_grouped },
        { "anchors_later", test_anchors_later },
    };
    int failed_tests = 0;
    for (const auto & t : tests) {
        n_failed = 0;
        t.run();
        printf("%s: %s\n", t.name, n_failed ? "FAILED" : "ok");
        failed_tests += n_failed > 0;
    }
    return failed_tests > 0;
}
