// The choice before the language model: which rows go on, against brute force, and what is left of them.
//   test-input [seed]

#include "selection.h"
#include "halfv-input.h"

// rows that may be left out
static ids open_rows(int n, const ids & structure) {
    ids open;
    for (int32_t i = 0; i < n; ++i) {
        if (!contains(structure, { i })) {
            open.push_back(i);
        }
    }
    return open;
}

static void test_choice() {
    randoms r(1);
    int compared = 0;
    for (int round = 0; round < 60; ++round) {
        const int n = r.upto(2, 150), width = r.upto(8, 40), stride = width*r.upto(1, 3);
        ids structure = r.choice(n, r.upto(0, n - 1)/(round % 2 ? 3 : 8));
        std::sort(structure.begin(), structure.end());
        const float keep = r.upto(1, 99)/100.0f;
        const std::vector<float> rows = r.normal((size_t) n*stride);
        const halfv::picture_rows plan = halfv::plan_rows(n, structure, keep, 0);
        const ids open = open_rows(n, structure);
        const int n_kept = std::max(1, (int) std::floor(keep*open.size() + 1e-4));
        CHECK(plan.n == n && plan.n_kept == n_kept + (int) structure.size() && plan.kept.empty());

        std::vector<float> features;
        for (const int32_t i : open) {
            features.insert(features.end(), &rows[(size_t) i*stride], &rows[(size_t) i*stride] + width);
        }
        const int n_open = open.size();
        halfv::final_norm_features(features.data(), nullptr, n_open, width, features.data());
        double gap = 0;
        ids want(structure);
        for (const int32_t i : brute_cover(exact_gram(features, n_open, width), n_open, { n_open - 1 }, n_kept, &gap)) {
            want.push_back(open[i]);
        }
        std::sort(want.begin(), want.end());
        const halfv::encoded_picture picture = { rows.data(), n, stride, width };
        const ids got = halfv::choose_rows(picture, plan, 1);
        CHECK(is_selection(got, n, plan.n_kept) && contains(got, structure) && got.back() == n - 1);
        CHECK(halfv::choose_rows(picture, plan, 3) == got);
        if (gap > 1e-6) {
            ++compared;
            CHECK(got == want);
        }
    }
    CHECK(compared > 30);
}

static void test_plan() {
    CHECK(halfv::plan_rows(100, {}, 0.5f, 64).n_kept == 50);
    CHECK(halfv::plan_rows(100, {}, 0.001f, 64).n_kept == 1);
    CHECK(halfv::plan_rows(100, {}, 1.0f, 64).n_kept == 100);
    CHECK(halfv::plan_rows(63, {}, 0.5f, 64).n_kept == 63); // small
    CHECK(halfv::plan_rows(64, {}, 0.5f, 64).n_kept == 32);
    CHECK(halfv::plan_rows(10, { 0, 4, 9 }, 0.7f, 0).n_kept == 3 + 4); // of the other seven
    CHECK(halfv::plan_rows(2, { 0, 1 }, 0.5f, 0).n_kept == 2); // nothing else
    CHECK(halfv::plan_rows(0, {}, 0.5f, 0).n_kept == 0);
    CHECK(halfv::plan_rows(100, {}, 1.0f, 64, 0.25f).n_kept == 25 && halfv::plan_rows(100, {}, 0.5f, 64, 0.25f).n_kept == 12);
    CHECK(halfv::plan_rows(63, {}, 0.5f, 64, 0.25f).n_kept == 63 && halfv::plan_rows(10, { 0, 4, 9 }, 1.0f, 0, 0.5f).n_kept == 3 + 3);
    CHECK(halfv::rows_suffix(1.0f, 0.25f) == "+halfv.input.merge=0.25" && halfv::rows_suffix(1.0f, 1.0f) == "");
    CHECK(halfv::id_suffix("input.keep", { 0.5f }) == "+halfv.input.keep=0.5" && halfv::id_suffix("encoder", { 3, 0.25f }) == "+halfv.encoder=3,0.25");
}

// the same in doubles, one row after the other; `gap`: how far the closest decision was from another
static ids brute_merge(std::vector<double> & rows, int stride, int width, ids open, int n_left, double & gap) {
    while ((int) open.size() > n_left) {
        struct pair { double like; int32_t from, to; };
        std::vector<pair> pairs;
        const int n = open.size();
        for (int i = n - 2; i >= 0; i -= 2) {
            pair best = { -2, open[i], -1 };
            double second = -2;
            for (int j = n - 1; j >= 0; j -= 2) {
                double dot = 0, a = 0, b = 0;
                for (int k = 0; k < width; ++k) {
                    const double x = rows[(size_t) open[i]*stride + k], y = rows[(size_t) open[j]*stride + k];
                    dot += x*y;
                    a += x*x;
                    b += y*y;
                }
                const double like = dot/std::sqrt(a*b);
                second = std::max(second, std::min(like, best.like));
                if (like > best.like) { best = { like, open[i], open[j] }; }
            }
            gap = std::min(gap, best.like - second);
            pairs.push_back(best);
        }
        std::sort(pairs.begin(), pairs.end(), [](const pair & a, const pair & b) { return a.like > b.like; });
        const size_t n_gone = std::min<size_t>(pairs.size(), n - n_left);
        if (n_gone < pairs.size()) { gap = std::min(gap, pairs[n_gone - 1].like - pairs[n_gone].like); }
        pairs.resize(n_gone);
        for (const int32_t to : ids(open)) {
            std::vector<double> sum(&rows[(size_t) to*stride], &rows[(size_t) to*stride] + stride);
            int count = 1;
            for (const pair & p : pairs) {
                for (int k = 0; k < stride && p.to == to; ++k) { sum[k] += rows[(size_t) p.from*stride + k]; }
                count += p.to == to;
            }
            for (int k = 0; k < stride; ++k) { rows[(size_t) to*stride + k] = sum[k]/count; }
        }
        for (const pair & p : pairs) { open.erase(std::find(open.begin(), open.end(), p.from)); }
    }
    return open;
}

static void test_merging() {
    randoms r(4);
    int compared = 0;
    for (int round = 0; round < 60; ++round) {
        const int n = r.upto(2, 150), width = r.upto(8, 40), stride = width*r.upto(1, 3), n_left = r.upto(1, n);
        ids open = r.choice(n, r.upto(1, n));
        std::sort(open.begin(), open.end());
        const std::vector<float> before = r.normal((size_t) n*stride);
        std::vector<float> rows = before;
        std::vector<double> exact(before.begin(), before.end());
        double gap = 1;
        const ids want = brute_merge(exact, stride, width, open, std::min<int>(n_left, open.size()), gap);
        const ids got = halfv::merge_rows(rows.data(), stride, width, open, n_left, r.upto(1, 3));
        CHECK((int) got.size() == std::min<int>(n_left, open.size()) && got.back() == open.back());
        if (gap > 1e-6) {
            ++compared;
            CHECK(got == want);
            double off = 0;
            for (const int32_t i : got) {
                for (int k = 0; k < stride; ++k) { off = std::max(off, std::fabs(rows[(size_t) i*stride + k] - exact[(size_t) i*stride + k])); }
            }
            CHECK(off < 1e-5);
        }
        for (int32_t i = 0; i < n; ++i) { // structure is as it was
            CHECK(contains(open, { i }) || std::equal(&rows[(size_t) i*stride], &rows[(size_t) i*stride] + stride, &before[(size_t) i*stride]));
        }
    }
    CHECK(compared > 30);

    std::vector<float> rows = { 1, 0,  1, 0,  0, 3,  0, 1 }; // pairs that point the same way
    CHECK((halfv::merge_rows(rows.data(), 2, 2, { 0, 1, 2, 3 }, 2, 1) == ids{ 1, 3 }));
    CHECK((rows == std::vector<float>{ 1, 0,  1, 0,  0, 3,  0, 2 }));
}

static void test_saved() {
    const auto valid = [](int n, int n_kept, ids kept) { return halfv::picture_rows{ n, n_kept, {}, std::move(kept) }.valid(); };
    CHECK(valid(8, 3, {}) && valid(8, 3, { 0, 4, 7 }));
    CHECK(!valid(8, 0, {}) && !valid(8, -1, {}) && !valid(8, 8, {}) && !valid(8, 9, {}) && !valid(0, 0, {}));
    CHECK(!valid(8, 3, { 0, 4 }) && !valid(8, 2, { 4, 4 }) && !valid(8, 2, { 5, 4 }) && !valid(8, 2, { 0, 8 }) && !valid(8, 2, { -1, 3 }));
}

// several pictures of one batch, some whole, keep their rows to the bit
static void test_rows_that_are_left() {
    randoms r(2);
    for (int round = 0; round < 30; ++round) {
        const int stride = r.upto(4, 20), n_pictures = r.upto(1, 5);
        std::vector<halfv::picture_rows> plans(n_pictures);
        std::vector<halfv::rows_of_batch> batch;
        std::vector<float> rows, want;
        for (auto & plan : plans) {
            const int n = r.upto(1, 40);
            const std::vector<float> own = r.normal((size_t) n*stride);
            rows.insert(rows.end(), own.begin(), own.end());
            const float merge = r.upto(0, 1) ? 1.0f : r.upto(1, 100)/100.0f;
            plan = halfv::plan_rows(n, {}, r.upto(1, 100)/100.0f, 8, merge);
            const bool whole = plan.n_kept == n;
            batch.push_back({ n, whole ? nullptr : &plan });
            ids kept(n);
            std::iota(kept.begin(), kept.end(), 0);
            std::vector<float> merged = own;
            if (!whole && plan.n_merged < n) {
                const ids left = halfv::merge_rows(merged.data(), stride, stride, kept, plan.n_merged, 1);
                std::vector<float> alone;
                for (const int32_t i : left) { alone.insert(alone.end(), &merged[(size_t) i*stride], &merged[(size_t) i*stride] + stride); }
                kept = left;
                if (plan.n_kept < plan.n_merged) {
                    kept.clear();
                    const halfv::picture_rows rest = { plan.n_merged, plan.n_kept, {}, {} };
                    for (const int32_t i : halfv::choose_rows({ alone.data(), plan.n_merged, stride, stride }, rest, 1)) { kept.push_back(left[i]); }
                }
            } else if (!whole) {
                kept = halfv::choose_rows({ own.data(), n, stride, stride }, plan, 1);
            }
            for (const int32_t i : kept) { want.insert(want.end(), &merged[(size_t) i*stride], &merged[(size_t) i*stride] + stride); }
        }
        halfv::keep_rows(rows, stride, stride, batch, 2);
        CHECK(rows == want);
        for (size_t i = 0; i < batch.size(); ++i) {
            CHECK(!batch[i].plan || (plans[i].valid() && (int) plans[i].kept.size() == plans[i].n_kept));
        }
    }
}

static void test_strange_rows() {
    randoms r(3);
    for (const float strange : { NaN, Inf, 0.0f }) {
        std::vector<float> rows = r.normal(20*6);
        std::fill(rows.begin() + 12, rows.begin() + 60, strange);
        const auto plan = halfv::plan_rows(20, {}, 0.6f, 0);
        CHECK(is_selection(halfv::choose_rows({ rows.data(), 20, 6, 6 }, plan, 1), 20, 12));
        ids open(20);
        std::iota(open.begin(), open.end(), 0);
        CHECK(is_selection(halfv::merge_rows(rows.data(), 6, 6, open, 7, 2), 20, 7));
    }
}

int main(int argc, char ** argv) {
    return run(argc, argv, {
        { "choice", test_choice },
        { "plan", test_plan },
        { "merging", test_merging },
        { "saved", test_saved },
        { "rows that are left", test_rows_that_are_left },
        { "strange rows", test_strange_rows },
    });
}
