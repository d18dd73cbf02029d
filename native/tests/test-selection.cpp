// Quotas, scores and features of the selection against float64 brute force, on random inputs.
//   test-selection [seed]

#include "selection.h"

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

static void test_layer_norm() {
    randoms r(4);
    for (int round = 0; round < 30; ++round) {
        const int d = r.upto(2, 100);
        const std::vector<float> x = r.normal(d), w = r.normal(d), b = r.normal(d);
        std::vector<float> out = x, plain = x;
        halfv::layer_norm(out.data(), w.data(), b.data(), d, 1e-5f);
        halfv::layer_norm(plain.data(), nullptr, nullptr, d, 1e-5f);
        double mean = 0, square = 0;
        for (const float v : x) {
            mean += (double) v / d;
            square += (double) v * v / d;
        }
        for (int j = 0; j < d; ++j) {
            const double y = (x[j] - mean) / std::sqrt(square - mean * mean + 1e-5);
            CHECK(std::fabs(plain[j] - y) < 1e-4);
            CHECK(std::fabs(out[j] - (y * w[j] + b[j])) < 1e-4);
        }
    }
}

int main(int argc, char ** argv) {
    return run(argc, argv, {
        { "quota", test_quota },
        { "scores", test_scores },
        { "scores_edges", test_scores_edges },
        { "top_k", test_top_k },
        { "features", test_features },
        { "layer_norm", test_layer_norm },
    });
}
