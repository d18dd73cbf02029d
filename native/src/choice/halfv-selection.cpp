#include "halfv-selection.h"

#include "halfv-dots.h"
#include "halfv-workers.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <numeric>
#include <queue>

namespace halfv {

namespace {

// sorted, without repeats, inside [0, n)
std::vector<int32_t> clean(std::vector<int32_t> idx, int n) {
    idx.erase(std::remove_if(idx.begin(), idx.end(), [n](int32_t i) { return i < 0 || i >= n; }), idx.end());
    std::sort(idx.begin(), idx.end());
    idx.erase(std::unique(idx.begin(), idx.end()), idx.end());
    return idx;
}

// nearest[i] = max(nearest[i], row[i]), NaN ignored
void absorb(const float * row, int n, float * nearest) {
    for (int i = 0; i < n; ++i) {
        nearest[i] = row[i] > nearest[i] ? row[i] : nearest[i];
    }
}

// Orders tokens by the similarity to their nearest chosen token, then by index: the smallest is the next to choose.
uint64_t key_of(float sim, int32_t i) {
    uint32_t u;
    memcpy(&u, &sim, sizeof(u));
    u = u >> 31 ? ~u : u | 0x80000000u;
    return (uint64_t) u << 32 | (uint32_t) i;
}

// Exact farthest-point sampling without all the dot products. A key only grows as tokens are chosen, so a key that
// has not seen the latest chosen ones is a lower bound. Each round brings the `batch` smallest keys up to date and
// chooses among them as long as the winner is below every key outside the batch.
// False when it was stopped.
bool cover_lazy(const float * features, int n, int d, const std::vector<int32_t> & anchors, int k, worker_pool & workers,
                const std::function<bool()> & stop, std::vector<int32_t> & chosen) {
    const int batch = 144, block = 24; // block: a multiple of every tile size
    const dots_fn dots = best_dots();
    std::vector<uint64_t> key(n), open;
    std::vector<int> seen(n, 0); // how many of the chosen a key accounts for
    std::vector<char> in(n, 0);
    std::vector<const float *> chosen_rows, rows;
    std::vector<int32_t> cand;
    std::vector<float> sim;

    const auto row = [&](int32_t i) { return features + (size_t) i * d; };
    const auto raise = [&](int32_t i, float s) {
        if (s == s) {
            key[i] = std::max(key[i], key_of(s, i));
        }
    };
    const auto choose = [&](int32_t i) {
        in[i] = 1;
        chosen.push_back(i);
        chosen_rows.push_back(row(i));
    };
    for (int32_t i = 0; i < n; ++i) {
        key[i] = key_of(-FLT_MAX, i);
    }
    for (int32_t i : anchors) {
        choose(i);
    }
    while ((int) chosen.size() < k) {
        if (stop && stop()) {
            return false;
        }
        open.clear();
        for (int32_t i = 0; i < n; ++i) {
            if (!in[i]) {
                open.push_back(key[i]);
            }
        }
        uint64_t bar = UINT64_MAX; // the smallest key outside the batch
        if (open.size() > (size_t) batch) {
            std::nth_element(open.begin(), open.begin() + batch, open.end());
            bar = open[batch];
            open.resize(batch);
        }
        cand.clear();
        for (uint64_t c : open) {
            cand.push_back((int32_t) (uint32_t) c);
        }
        std::sort(cand.begin(), cand.end(), [&](int32_t a, int32_t b) { return seen[a] < seen[b]; });

        // up to date with what has been chosen since
        const int n_chosen = (int) chosen.size();
        const int n_cand = (int) cand.size();
        const int from = seen[cand[0]];
        const int width = n_chosen - from;
        rows.clear();
        for (int32_t c : cand) {
            rows.push_back(row(c));
        }
        const int n_rb = (n_cand + block - 1) / block;
        sim.resize((size_t) n_cand * std::max(width, n_cand));
        workers.each(n_rb * ((width + block - 1) / block), [&](int item) {
            const int i = item % n_rb * block, j = item / n_rb * block;
            if (seen[cand[i]] < from + j + block) {
                dots(&rows[i], std::min(block, n_cand - i), &chosen_rows[from + j], std::min(block, width - j), d,
                     &sim[(size_t) i * width + j], width);
            }
        });
        for (int i = 0; i < n_cand; ++i) {
            const int32_t c = cand[i];
            float top = -FLT_MAX;
            for (int j = seen[c] - from; j < width; ++j) {
                const float s = sim[(size_t) i * width + j];
                top = s > top ? s : top;
            }
            raise(c, top);
            seen[c] = n_chosen;
        }
        cand.erase(std::remove_if(cand.begin(), cand.end(), [&](int32_t c) { return key[c] > bar; }), cand.end());

        // choose among those that can still win, with the lower half of their similarities
        const int q = (int) cand.size();
        rows.clear();
        for (int32_t c : cand) {
            rows.push_back(row(c));
        }
        const int n_qb = (q + block - 1) / block;
        workers.each(n_qb * n_qb, [&](int item) {
            const int i = item % n_qb * block, j = item / n_qb * block;
            if (j <= i) {
                dots(&rows[i], std::min(block, q - i), &rows[j], std::min(block, q - j), d, &sim[(size_t) i * q + j], q);
            }
        });
        while ((int) chosen.size() < k) {
            int best = -1;
            for (int i = 0; i < q; ++i) {
                if (!in[cand[i]] && (best < 0 || key[cand[i]] < key[cand[best]])) {
                    best = i;
                }
            }
            if (best < 0 || key[cand[best]] > bar) {
                break;
            }
            choose(cand[best]);
            for (int i = 0; i < q; ++i) {
                raise(cand[i], sim[(size_t) std::max(i, best) * q + std::min(i, best)]);
                seen[cand[i]] = (int) chosen.size();
            }
        }
    }
    return true;
}

} // namespace

int quota(int n, float ratio) {
    const double x = std::floor((double) ratio * (1 + 0x1p-23) * n + 1e-6); // 0.7f is a little less than 0.7
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
    const dots_fn dots = best_dots();
    const int group = n_head / n_head_kv;
    std::vector<const float *> qs(group), ks(n);
    std::vector<float> weights((size_t) n_head * n);
    for (int g = 0; g < n_head_kv; ++g) {
        for (int h = 0; h < group; ++h) {
            qs[h] = q + (size_t) (g * group + h) * head_dim;
        }
        for (int i = 0; i < n; ++i) {
            ks[i] = k + i * k_stride + (size_t) g * head_dim;
        }
        dots(qs.data(), group, ks.data(), n, head_dim, &weights[(size_t) g * group * n], n);
    }
    scores_of_dots(weights.data(), n, n_head, out);
}

void scores_of_dots(float * dots, int n, int n_head, float * out) {
    std::fill(out, out + n, 0.0f);
    int heads = 0;
    for (int h = 0; h < n_head; ++h) {
        float * w = dots + (size_t) h * n;
        float top = -INFINITY;
        for (int i = 0; i < n; ++i) {
            w[i] = std::isnan(w[i]) ? -INFINITY : w[i];
            top = std::max(top, w[i]);
        }
        if (!std::isfinite(top)) {
            continue;
        }
        double sum = 0;
        for (int i = 0; i < n; ++i) {
            w[i] = std::exp(w[i] - top);
            sum += w[i];
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

void layer_norm(float * row, const float * weight, const float * bias, int d, float eps) {
    double sum = 0, squares = 0;
    for (int j = 0; j < d; ++j) { sum += row[j]; }
    const double mean = sum / d;
    for (int j = 0; j < d; ++j) { squares += (row[j] - mean) * (row[j] - mean); }
    const double scale = 1 / std::sqrt(squares / d + eps);
    for (int j = 0; j < d; ++j) {
        row[j] = float((row[j] - mean) * scale) * (weight ? weight[j] : 1.0f) + (bias ? bias[j] : 0.0f);
    }
}

void final_norm_features(const float * rows, const float * norm_weight, int n, int d, float * out) {
    for (int i = 0; i < n; ++i) {
        const float * x = rows + (size_t) i * d;
        float * y = out + (size_t) i * d;
        for (int j = 0; j < d; ++j) {
            y[j] = norm_weight ? x[j] * norm_weight[j] : x[j];
        }
        const int L = 16; // independent sums, for the compiler to vectorise
        float part[L] = {};
        int j = 0;
        for (; j + L <= d; j += L) {
            for (int l = 0; l < L; ++l) {
                part[l] += y[j + l] * y[j + l];
            }
        }
        for (; j < d; ++j) {
            part[0] += y[j] * y[j];
        }
        const float sum = std::accumulate(part, part + L, 0.0f);
        const float scale = 1 / std::sqrt(sum);
        const bool usable = sum > 0 && std::isfinite(sum);
        for (j = 0; j < d; ++j) {
            y[j] = usable ? y[j] * scale : 0;
        }
    }
}

int gram_layout::n_tiles(int b) const {
    return (int) ((end_of(b) + stripe - 1) / stripe);
}

int gram_layout::width(int b, int s) const {
    return (int) std::min<int64_t>(stripe, end_of(b) - (int64_t) s * stripe);
}

size_t gram_layout::tile(int b, int s) const {
    const int64_t whole = block < n ? (int64_t) block * block * b * (b + 1) / 2 : 0;
    return (size_t) (whole + rows_of(b) * s * stripe);
}

size_t gram_layout::at(int i, int j) const {
    const int b = i / block, s = j / stripe;
    return tile(b, s) + (size_t) (i - b * block) * width(b, s) + j - s * stripe;
}

size_t gram_layout::size() const {
    return n < 1 ? 0 : at(n - 1, n - 1) + 1;
}

void clear_broken(float * gram, const gram_layout & layout) {
    for (int i = 0; i < layout.n; ++i) {
        if (std::isnan(gram[layout.at(i, i)])) {
            std::replace_if(gram, gram + layout.size(), [](float x) { return std::isnan(x); }, 0.0f);
            return;
        }
    }
}

// A similarity to the nearest chosen token only grows as tokens are chosen, so one that has not seen the latest is a lower bound.
// What follows a chosen token in memory is brought up to date at once; where its similarities are a column of blocks below, a
// row there is only when it would be chosen.
std::vector<int32_t> cover_gram(const float * gram, const gram_layout & layout, const std::vector<int32_t> & anchors, int k) {
    const int n = layout.n, block = layout.block, stripe = layout.stripe;
    if (n < 1 || block < 1 || stripe < 1) {
        return {};
    }
    std::vector<int32_t> chosen = clean(anchors, n);
    k = std::min(n, std::max(k, (int) chosen.size()));
    std::vector<float> nearest(n, -FLT_MAX);
    std::vector<int> seen(n, 0); // how many of the chosen a token has seen
    std::vector<char> in(n, 0);
    const auto take_in = [&](int32_t c) {
        in[c] = 1;
        for (int s = 0; s < layout.n_tiles(c / block); ++s) {
            absorb(gram + layout.at(c, s * stripe), layout.width(c / block, s), nearest.data() + s * stripe);
        }
    };
    for (const int32_t c : chosen) {
        take_in(c);
    }
    using entry = std::pair<float, int32_t>; // the smallest is the next to choose, of equals the first
    std::priority_queue<entry, std::vector<entry>, std::greater<entry>> next;
    for (int32_t i = 0; i < n; ++i) {
        if (!in[i]) {
            next.push({ nearest[i], i });
        }
    }
    std::vector<const float *> own; // of one token, by stripes
    while ((int) chosen.size() < k) {
        const auto [sim, i] = next.top();
        own.clear();
        for (int s = 0; s < layout.n_tiles(i / block); ++s) {
            own.push_back(gram + layout.at(i, s * stripe) - (size_t) s * stripe);
        }
        for (; seen[i] < (int) chosen.size(); ++seen[i]) {
            const int32_t c = chosen[seen[i]];
            if (c / block < i / block && own[c / stripe][c] > nearest[i]) {
                nearest[i] = own[c / stripe][c];
            }
        }
        next.pop();
        if (nearest[i] > sim) {
            next.push({ nearest[i], i });
        } else {
            chosen.push_back(i);
            take_in(i);
        }
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
    const int n_groups = n / group_max + (n % group_max != 0);
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
                           worker_pool * workers, const std::function<bool()> & stop) {
    std::vector<int32_t> kept, chosen;
    if (d < 1) {
        return kept;
    }
    worker_pool alone(1);
    for (const cover_group & g : cover_groups(n, anchors, k)) {
        chosen.clear();
        if (!cover_lazy(features + (size_t) g.first * d, g.count, d, g.anchors, g.k, workers ? *workers : alone, stop, chosen)) {
            return {};
        }
        for (int32_t i : chosen) {
            kept.push_back(g.first + i);
        }
    }
    std::sort(kept.begin(), kept.end());
    return kept;
}

std::vector<uint32_t> stand_for(const float * features, int n, int d, const std::vector<int32_t> & chosen, const std::vector<uint32_t> & counts,
                                worker_pool * workers) {
    const std::vector<int32_t> kept = clean(chosen, n);
    std::vector<uint32_t> res(n);
    std::vector<char> in(n, 0);
    for (int32_t i : kept) {
        in[i] = 1;
        res[i] = counts[i];
    }
    worker_pool alone(1);
    const int block = 24; // a multiple of every tile size
    const dots_fn dots = best_dots();
    const auto row = [&](int32_t i) { return features + (size_t) i * d; };
    for (const cover_group & group : cover_groups(kept.empty() || d < 1 ? 0 : n, {}, 0)) {
        std::vector<int32_t> rest, among;
        for (int32_t i = group.first; i < group.first + group.count; ++i) {
            (in[i] ? among : rest).push_back(i);
        }
        if (among.empty()) {
            among = kept;
        }
        std::vector<const float *> a, b;
        for (int32_t i : rest) {
            a.push_back(row(i));
        }
        for (int32_t i : among) {
            b.push_back(row(i));
        }
        const int n_rest = (int) rest.size(), n_among = (int) among.size();
        std::vector<int32_t> nearest(n_rest);
        (workers ? *workers : alone).each((n_rest + block - 1) / block, [&](int item) {
            const int first = item * block, count = std::min(block, n_rest - first);
            std::vector<float> sim((size_t) count * n_among);
            dots(&a[first], count, b.data(), n_among, d, sim.data(), n_among);
            for (int i = 0; i < count; ++i) {
                const float * s = &sim[(size_t) i * n_among];
                int best = 0;
                for (int j = 1; j < n_among; ++j) {
                    best = s[j] > s[best] ? j : best;
                }
                nearest[first + i] = among[best];
            }
        });
        for (int i = 0; i < n_rest; ++i) {
            res[nearest[i]] += counts[rest[i]];
        }
    }
    return res;
}

} // namespace halfv
