#include "halfv-selection.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numeric>

namespace halfv {

namespace {

float dot(const float * a, const float * b, int d) {
    float s = 0;
    for (int x = 0; x < d; ++x) {
        s += a[x] * b[x];
    }
    return s;
}

// sorted, without repeats, inside [0, n)
std::vector<int32_t> clean(std::vector<int32_t> idx, int n) {
    idx.erase(std::remove_if(idx.begin(), idx.end(), [n](int32_t i) { return i < 0 || i >= n; }), idx.end());
    std::sort(idx.begin(), idx.end());
    idx.erase(std::unique(idx.begin(), idx.end()), idx.end());
    return idx;
}

} // namespace

int quota(int n, float ratio) {
    const double x = std::floor((double) ratio * n + 1e-6);
    return n > 0 && x > 0 ? (int) std::min(x, (double) n) : 0;
}

void visual_scores(const float * q, const float * k, size_t k_stride, int n, int n_head, int n_head_kv, int head_dim,
                   float * out) {
    if (n < 1) {
        return;
    }
    std::fill(out, out + n, 0.0f);
    if (n_head < 1 || n_head_kv < 1 || head_dim < 1 || n_head % n_head_kv != 0) {
        return;
    }
    const int group = n_head / n_head_kv;
    std::vector<float> w(n);
    int heads = 0;
    for (int h = 0; h < n_head; ++h) {
        float top = -INFINITY;
        for (int i = 0; i < n; ++i) {
            const float s = dot(q + (size_t) h * head_dim, k + i * k_stride + (size_t) (h / group) * head_dim, head_dim);
            w[i] = std::isnan(s) ? -INFINITY : s;
            top = std::max(top, w[i]);
        }
        if (!std::isfinite(top)) {
            continue;
        }
        double sum = 0;
        for (float & x : w) {
            x = std::exp(x - top);
            sum += x;
        }
        const float scale = (float) (1 / sum);
        for (int i = 0; i < n; ++i) {
            out[i] += w[i] * scale;
        }
        ++heads;
    }
    for (int i = 0; heads > 0 && i < n; ++i) {
        out[i] /= heads;
    }
}

std::vector<int32_t> top_k(const float * scores, int n, int k, const std::vector<int32_t> & skip) {
    std::vector<char> skipped(std::max(n, 0), 0);
    for (int32_t i : clean(skip, n)) {
        skipped[i] = 1;
    }
    std::vector<int32_t> idx;
    for (int i = 0; i < n; ++i) {
        if (!skipped[i]) {
            idx.push_back(i);
        }
    }
    k = std::min(std::max(k, 0), (int) idx.size());
    std::partial_sort(idx.begin(), idx.begin() + k, idx.end(), [scores](int32_t a, int32_t b) {
        const float x = std::isnan(scores[a]) ? -INFINITY : scores[a];
        const float y = std::isnan(scores[b]) ? -INFINITY : scores[b];
        return x != y ? x > y : a < b;
    });
    idx.resize(k);
    std::sort(idx.begin(), idx.end());
    return idx;
}

void final_norm_features(const float * rows, const float * norm_weight, int n, int d, float * out) {
    for (int i = 0; i < n; ++i) {
        const float * x = rows + (size_t) i * d;
        float * y = out + (size_t) i * d;
        float sum = 0;
        for (int j = 0; j < d; ++j) {
            y[j] = norm_weight ? x[j] * norm_weight[j] : x[j];
            sum += y[j] * y[j];
        }
        const float scale = 1 / std::sqrt(sum);
        const bool usable = sum > 0 && std::isfinite(sum);
        for (int j = 0; j < d; ++j) {
            y[j] = usable ? y[j] * scale : 0;
        }
    }
}

void gram(const float * features, int n, int d, float * out, int /*n_threads*/) {
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
            out[(size_t) i * n + j] = out[(size_t) j * n + i] = dot(features + (size_t) i * d, features + (size_t) j * d, d);
        }
    }
}

std::vector<int32_t> cover_gram(const float * gram, int n, const std::vector<int32_t> & anchors, int k) {
    if (n < 1) {
        return {};
    }
    std::vector<int32_t> chosen = clean(anchors, n);
    k = std::min(n, std::max(k, (int) chosen.size()));
    std::vector<float> nearest(n, -FLT_MAX); // similarity to the nearest chosen token
    std::vector<char> in(n, 0);
    for (size_t c = 0; (int) chosen.size() < k || c < chosen.size();) {
        if (c < chosen.size()) {
            const float * row = gram + (size_t) chosen[c] * n;
            in[chosen[c++]] = 1;
            for (int i = 0; i < n; ++i) {
                nearest[i] = row[i] > nearest[i] ? row[i] : nearest[i];
            }
            continue;
        }
        int best = -1;
        for (int i = 0; i < n; ++i) {
            best = !in[i] && (best < 0 || nearest[i] < nearest[best]) ? i : best;
        }
        chosen.push_back(best);
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen;
}

std::vector<cover_group> cover_groups(int n, const std::vector<int32_t> & anchors, int k, int group_max) {
    std::vector<cover_group> groups;
    if (n < 1 || group_max < 1) {
        return groups;
    }
    const std::vector<int32_t> seeds = clean(anchors, n);
    k = std::min(n, std::max(k, (int) seeds.size()));
    const int n_groups = (n + group_max - 1) / group_max;
    std::vector<int> order(n_groups);
    std::iota(order.begin(), order.end(), 0);
    int left = k;
    for (int g = 0; g < n_groups; ++g) {
        const int first = (int) ((int64_t) n * g / n_groups);
        const int count = (int) ((int64_t) n * (g + 1) / n_groups) - first;
        cover_group group = { first, count, (int) ((int64_t) k * count / n), {} };
        for (int32_t a : seeds) {
            if (a >= first && a < first + count) {
                group.anchors.push_back(a - first);
            }
        }
        left -= group.k;
        groups.push_back(std::move(group));
    }
    const auto remainder = [&](int g) { return (int64_t) k * groups[g].count % n; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return remainder(a) > remainder(b); });
    for (int i = 0; i < left; ++i) {
        groups[order[i]].k++;
    }
    // what a group crowded with anchors needs beyond its share is taken from where most is free
    for (cover_group & group : groups) {
        while (group.k < (int) group.anchors.size()) {
            auto giver = std::max_element(groups.begin(), groups.end(), [](const cover_group & a, const cover_group & b) {
                return a.k - (int) a.anchors.size() < b.k - (int) b.anchors.size();
            });
            giver->k--;
            group.k++;
        }
    }
    return groups;
}

std::vector<int32_t> cover(const float * features, int n, int d, const std::vector<int32_t> & anchors, int k,
                           int n_threads) {
    std::vector<int32_t> kept;
    std::vector<float> sim;
    for (const cover_group & g : cover_groups(n, anchors, k)) {
        sim.resize((size_t) g.count * g.count);
        gram(features + (size_t) g.first * d, g.count, d, sim.data(), n_threads);
        for (int32_t i : cover_gram(sim.data(), g.count, g.anchors, g.k)) {
            kept.push_back(g.first + i);
        }
    }
    return kept;
}

} // namespace halfv
