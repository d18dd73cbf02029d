// Coverage, whole and in groups, against float64 brute force, on random inputs.
//   test-cover [seed]

#include "selection.h"

#include "halfv-workers.h"

static halfv::worker_pool two(2), three(3);

static std::vector<float> lower_triangle(const std::vector<double> & g, const halfv::gram_layout & layout) {
    std::vector<float> res(layout.size(), NaN);
    for (int i = 0; i < layout.n; ++i) {
        for (int j = 0; j < layout.end_of(i / layout.block); ++j) {
            CHECK(std::isnan(res.at(layout.at(i, j)))); // a place of its own
            res[layout.at(i, j)] = (float) g[(size_t) i * layout.n + j];
        }
    }
    CHECK(std::none_of(res.begin(), res.end(), [](float x) { return std::isnan(x); }));
    return res;
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
        CHECK(halfv::cover(f.data(), n, d, anchors, k, &three) == want);
        CHECK(halfv::cover_gram(narrow(g).data(), { n }, anchors, k) == want);
        const halfv::gram_layout layout = { n, r.upto(1, n + 3), r.upto(1, n + 3) };
        CHECK(halfv::cover_gram(lower_triangle(g, layout).data(), layout, anchors, k) == want);
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
        CHECK(halfv::cover(f.data(), n, d, anchors, k, &two) == got);
        if (gap > 1e-6) {
            ++compared;
            CHECK(got == want);
            CHECK(halfv::cover_gram(narrow(g).data(), { n }, anchors, k) == want);
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
        CHECK(halfv::cover_gram(g.data(), { c.n }, c.anchors, c.k) == c.want);
    }
    CHECK(halfv::cover(f, 4, 0, { 1 }, 2).empty());
    CHECK(halfv::cover(f, 4, 2, {}, 2, nullptr, [] { return false; }) == (ids{ 0, 2 }));
    CHECK(halfv::cover(f, 4, 2, {}, 2, nullptr, [] { return true; }).empty());

    // all alike: by index
    const std::vector<float> same(300 * 5, 0.25f);
    ids first(100);
    std::iota(first.begin(), first.end(), 0);
    CHECK(halfv::cover(same.data(), 300, 5, {}, 100) == first);
    CHECK(halfv::cover(std::vector<float>(300 * 5, 0.0f).data(), 300, 5, {}, 100) == first);
    CHECK(halfv::cover(std::vector<float>(300 * 5, NaN).data(), 300, 5, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, NaN).data(), { 300 }, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, Inf).data(), { 300 }, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, -Inf).data(), { 300 }, {}, 100) == first);
    CHECK(halfv::cover_gram(std::vector<float>(300 * 300, -0.0f).data(), { 300 }, {}, 100) == first);

    // -0 and 0 are equally near
    const float zeros[3] = { 1, 0, -0.0f };
    const float zeros_gram[9] = { 1, 0, -0.0f, 0, 0, 0, -0.0f, 0, 0 };
    CHECK(halfv::cover(zeros, 3, 1, { 0 }, 2) == (ids{ 0, 1 }));
    CHECK(halfv::cover_gram(zeros_gram, { 3 }, { 0 }, 2) == (ids{ 0, 1 }));
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
        CHECK(is_selection(halfv::cover_gram(g.data(), { n }, anchors, k), n, k));
        if (!overflows) { // else the order of a sum decides between infinity and NaN
            CHECK(halfv::cover_gram(g.data(), { n }, anchors, k) == got);
        }
    }
}

// what a device makes of states that are not finite is what the host makes of them
static void test_cover_broken() {
    randoms r(8);
    for (int round = 0; round < 40; ++round) {
        const int n = r.upto(2, 120), d = r.upto(1, 20), k = r.upto(1, n);
        std::vector<float> f = r.normal((size_t) n * d);
        const ids broken = r.choice(n, r.upto(0, 3));
        for (const int i : broken) { f[(size_t) i * d + r.upto(0, d - 1)] = NaN; }
        halfv::final_norm_features(f.data(), nullptr, n, d, f.data());
        std::vector<double> g = exact_gram(f, n, d);
        for (const int i : broken) {
            for (int j = 0; j < n; ++j) { g[(size_t) i * n + j] = g[(size_t) j * n + i] = NaN; }
        }
        std::vector<float> narrowed = narrow(g);
        halfv::clear_broken(narrowed.data(), { n });
        CHECK(halfv::cover_gram(narrowed.data(), { n }, {}, k) == brute_cover(exact_gram(f, n, d), n, {}, k));
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
    const ids got = halfv::cover(f.data(), n, d, anchors, k, &two);
    CHECK(is_selection(got, n, k));
    CHECK(contains(got, anchors));
    CHECK(got == want);
}

// what the chosen stand for: all tokens count once, to the first of the most alike, of their group where it has some
static void test_stand_for() {
    randoms r(10);
    for (int round = 0; round < 80; ++round) {
        const bool grouped = round >= 78;
        const int n = grouped ? halfv::cover_group_max + r.upto(1, 50) : r.upto(1, 150), d = grouped ? 3 : r.upto(1, 40);
        const std::vector<float> f = r.integers((size_t) n * d);
        ids chosen = r.choice(n, round == 79 ? 1 : r.upto(1, std::min(n, 20)));
        std::vector<uint32_t> counts(n), want(n);
        for (auto & c : counts) {
            c = (uint32_t) r.upto(1, 3);
        }
        std::sort(chosen.begin(), chosen.end());
        const auto groups = halfv::cover_groups(n, {}, 0);
        for (const auto & g : groups) {
            const auto here = [&](int32_t i) { return i >= g.first && i < g.first + g.count; };
            const bool some = std::any_of(chosen.begin(), chosen.end(), here);
            for (int32_t i = g.first; i < g.first + g.count; ++i) {
                int32_t best = -1;
                float most = -Inf;
                for (const int32_t c : chosen) {
                    const float s = std::inner_product(&f[(size_t) i * d], &f[(size_t) i * d] + d, &f[(size_t) c * d], 0.0f);
                    if ((here(c) || !some) && s > most) {
                        best = c;
                        most = s;
                    }
                }
                const bool is_chosen = std::binary_search(chosen.begin(), chosen.end(), i);
                want[is_chosen ? i : best] += counts[i];
            }
        }
        const auto got = halfv::stand_for(f.data(), n, d, chosen, counts, round % 2 ? &three : nullptr);
        CHECK(got == want);
        CHECK(std::accumulate(got.begin(), got.end(), 0u) == std::accumulate(counts.begin(), counts.end(), 0u));
    }
    CHECK(halfv::stand_for(nullptr, 0, 3, {}, {}).empty());
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
    return run(argc, argv, {
        { "cover_exact", test_cover_exact },
        { "cover_features", test_cover_features },
        { "cover_edges", test_cover_edges },
        { "cover_not_finite", test_cover_not_finite },
        { "cover_broken", test_cover_broken },
        { "groups", test_groups },
        { "cover_grouped", test_cover_grouped },
        { "stand_for", test_stand_for },
        { "anchors_later", test_anchors_later },
    });
}
