#pragma once

// What the tests of the selection share: random inputs, brute force, and running them one by one.

#include "check.h"
#include "halfv-selection.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
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

static inline std::vector<double> exact_gram(const std::vector<float> & f, int n, int d) {
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
static inline ids brute_cover(const std::vector<double> & g, int n, const ids & anchors, int k, double * gap = nullptr) {
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

static inline std::vector<float> narrow(const std::vector<double> & v) {
    return std::vector<float>(v.begin(), v.end());
}

static inline bool is_selection(const ids & v, int n, size_t size) {
    return v.size() == size && std::is_sorted(v.begin(), v.end()) && std::set<int32_t>(v.begin(), v.end()).size() == size &&
           (v.empty() || (v.front() >= 0 && v.back() < n));
}

static inline bool contains(const ids & v, ids part) {
    std::sort(part.begin(), part.end());
    return std::includes(v.begin(), v.end(), part.begin(), part.end());
}

struct test {
    const char * name;
    void (*run)();
};

static inline int run(int argc, char ** argv, std::initializer_list<test> tests) {
    seed = argc > 1 ? (unsigned) strtoul(argv[1], nullptr, 10) : std::random_device{}();
    int failed_tests = 0;
    for (const auto & t : tests) {
        n_failed = 0;
        t.run();
        printf("%s: %s\n", t.name, n_failed ? "FAILED" : "ok");
        failed_tests += n_failed > 0;
    }
    return failed_tests > 0;
}
