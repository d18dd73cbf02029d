// What selection costs, in milliseconds: median of interleaved repetitions. Asserts nothing.
//   bench-selection [repetitions] [threads...]

#include "halfv-selection.h"
#include "halfv-workers.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

static double ms_of(const std::function<void()> & f) {
    const auto t0 = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - t0).count();
}

static double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

// gaussian: nothing alike; clustered: n/8 centres with a common part and spread; low rank: 64 directions and noise
static std::vector<float> make_rows(const char * kind, int n, int d) {
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    const int n_base = kind[0] == 'g' ? 0 : kind[0] == 'c' ? n / 8 + 1 : 65;
    std::vector<float> base((size_t) n_base * d), rows((size_t) n * d);
    for (float & x : base) {
        x = normal(rng);
    }
    for (int i = 0; i < n; ++i) {
        float * row = &rows[(size_t) i * d];
        const float noise = kind[0] == 'g' ? 1 : 0.2f + 0.5f * (i % 16) / 16;
        for (int x = 0; x < d; ++x) {
            row[x] = noise * normal(rng);
        }
        const int centre = n_base ? 1 + (int) (rng() % (n_base - 1)) : 0;
        for (int b = 0; b < n_base; ++b) {
            const float w = kind[0] == 'l' ? normal(rng) / (1 + 0.3f * b) : b == 0 || b == centre;
            for (int x = 0; w != 0 && x < d; ++x) {
                row[x] += w * base[(size_t) b * d + x];
            }
        }
    }
    return rows;
}

int main(int argc, char ** argv) {
    const int reps = argc > 1 ? std::max(1, atoi(argv[1])) : 5;
    std::vector<int> threads;
    for (int i = 2; i < argc; ++i) {
        threads.push_back(std::max(1, atoi(argv[i])));
    }
    if (threads.empty()) {
        threads = { 1, 2 };
    }
    const int n_head = 28, n_head_kv = 4, head_dim = 128;
    printf("keep 25%% of n, a tenth of them anchors; medians of %d, ms\n", reps);
    printf("%-10s %5s %5s | %7s %8s |", "kind", "n", "d", "scores", "features");
    for (int t : threads) {
        printf(" cover x%-2d", t);
    }
    printf(" | %9s %9s\n", "from gram", "its half");

    for (const char * kind : { "gaussian", "clustered", "low rank" }) {
        for (int n : { 576, 1024, 2048, 4096 }) {
            for (int d : { 1024, 2048, 3584 }) {
                const std::vector<float> rows = make_rows(kind, n, d);
                std::vector<float> q(n_head * head_dim), key((size_t) n * n_head_kv * head_dim), weight(d, 1.5f);
                std::mt19937 rng(3);
                std::normal_distribution<float> normal;
                for (auto * v : { &q, &key }) {
                    for (float & x : *v) {
                        x = normal(rng) * 0.5f;
                    }
                }
                std::vector<float> features((size_t) n * d), scores(n), gram((size_t) n * n);
                const int k = halfv::quota(n, 0.25f);
                std::vector<double> t_scores, t_features, t_gram, t_lower;
                std::vector<std::vector<double>> t_cover(threads.size());
                halfv::final_norm_features(rows.data(), weight.data(), n, d, features.data());
                // the walk over a Gram matrix takes the same time whatever d made it
                for (int i = 0; i < n; ++i) {
                    for (int j = 0; j <= i; ++j) {
                        float s = 0;
                        for (int x = 0; x < 64; ++x) {
                            s += features[(size_t) i * d + x] * features[(size_t) j * d + x];
                        }
                        gram[(size_t) i * n + j] = gram[(size_t) j * n + i] = s;
                    }
                }
                const halfv::gram_layout layout = { n, halfv::gram_block, halfv::gram_stripe };
                std::vector<float> lower(layout.size()); // as a device gives it
                for (int i = 0; i < n; ++i) {
                    for (int j = 0; j < layout.end_of(i / layout.block); ++j) {
                        lower[layout.at(i, j)] = gram[(size_t) i * n + j];
                    }
                }
                for (int r = 0; r < reps; ++r) {
                    t_scores.push_back(ms_of([&] {
                        halfv::visual_scores(q.data(), key.data(), n_head_kv * head_dim, n, n_head, n_head_kv, head_dim,
                                             scores.data());
                    }));
                    const std::vector<int32_t> anchors = halfv::top_k(scores.data(), n, halfv::quota(k, 0.1f));
                    t_features.push_back(ms_of([&] {
                        halfv::final_norm_features(rows.data(), weight.data(), n, d, features.data());
                    }));
                    for (size_t t = 0; t < threads.size(); ++t) {
                        halfv::worker_pool workers(threads[t]);
                        t_cover[t].push_back(ms_of([&] { halfv::cover(features.data(), n, d, anchors, k, &workers); }));
                    }
                    t_gram.push_back(ms_of([&] { halfv::cover_gram(gram.data(), { n }, anchors, k); }));
                    t_lower.push_back(ms_of([&] { halfv::cover_gram(lower.data(), layout, anchors, k); }));
                }
                printf("%-10s %5d %5d | %7.2f %8.2f |", kind, n, d, median(t_scores), median(t_features));
                for (const auto & t : t_cover) {
                    printf(" %9.2f", median(t));
                }
                printf(" | %9.2f %9.2f\n", median(t_gram), median(t_lower));
                fflush(stdout);
            }
        }
    }
    return 0;
}
