#include "halfv-input.h"

#include "halfv-dots.h"
#include "halfv-selection.h"
#include "halfv-workers.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>

namespace halfv {

static bool ascending_in(const std::vector<int32_t> & rows, int32_t n) {
    return std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<>()) == rows.end() &&
        (rows.empty() || (rows.front() >= 0 && rows.back() < n));
}

bool picture_rows::valid() const {
    return n_kept > 0 && n_kept < n && ascending_in(kept, n) && (kept.empty() || (int32_t) kept.size() == n_kept);
}

picture_rows plan_rows(int32_t n, std::vector<int32_t> structure, float keep, uint32_t min_visual_tokens, float merge) {
    const int32_t n_free = n - (int32_t) structure.size();
    picture_rows plan = { n, n, std::move(structure), {}, n_free };
    if (n_free > 0 && (uint32_t) n >= min_visual_tokens) {
        if (merge < 1.0f) { plan.n_merged = std::max(1, quota(n_free, merge)); }
        plan.n_kept -= n_free - (keep < 1.0f ? std::max(1, quota(plan.n_merged, keep)) : plan.n_merged);
    }
    return plan;
}

std::string id_suffix(const char * what, std::initializer_list<float> values) {
    std::string suffix = std::string("+halfv.") + what;
    char separator = '=';
    for (const float value : values) {
        char text[24];
        snprintf(text, sizeof(text), "%c%.9g", separator, value);
        suffix += text;
        separator = ',';
    }
    return suffix;
}

std::string rows_suffix(float keep, float merge) {
    return (merge < 1.0f ? id_suffix("input.merge", { merge }) : "") + (keep < 1.0f ? id_suffix("input.keep", { keep }) : "");
}

// rows that are no structure
static std::vector<int32_t> open_rows(int32_t n, const std::vector<int32_t> & structure) {
    std::vector<int32_t> open;
    auto next = structure.begin();
    for (int32_t i = 0; i < n; ++i) {
        if (next != structure.end() && *next == i) {
            ++next;
        } else {
            open.push_back(i);
        }
    }
    return open;
}

// of length 1
static std::vector<float> directions(const float * rows, int32_t stride, int32_t width, const std::vector<int32_t> & which) {
    std::vector<float> res(which.size()*width);
    for (size_t i = 0; i < which.size(); ++i) {
        std::copy_n(rows + (size_t) which[i]*stride, width, res.data() + i*width);
    }
    final_norm_features(res.data(), nullptr, which.size(), width, res.data());
    return res;
}

static std::vector<int32_t> choose_among(const encoded_picture & picture, const std::vector<int32_t> & open, const picture_rows & plan, int32_t n_threads) {
    std::vector<int32_t> kept = plan.structure;
    const int n_open = open.size(), n_go = plan.n_kept - (int) kept.size();
    if (n_go >= n_open) {
        kept.insert(kept.end(), open.begin(), open.end());
    } else {
        const auto features = directions(picture.rows, picture.stride, picture.width, open);
        worker_pool workers(std::clamp(n_threads, 1, cover_workers_max));
        for (const int32_t i : cover(features.data(), n_open, picture.width, { n_open - 1 }, n_go, &workers)) {
            kept.push_back(open[i]);
        }
    }
    std::sort(kept.begin(), kept.end());
    return kept;
}

std::vector<int32_t> choose_rows(const encoded_picture & picture, const picture_rows & plan, int32_t n_threads) {
    return choose_among(picture, open_rows(picture.n, plan.structure), plan, n_threads);
}

// which of the targets each source is most like, and how much: a NaN is like nothing
static void find_alike(const std::vector<float> & features, int32_t width, const std::vector<int32_t> & sources, const std::vector<int32_t> & targets,
                       std::vector<int32_t> & best, std::vector<float> & likeness, worker_pool & workers) {
    constexpr int block = 24; // a multiple of every tile size
    const dots_fn dots = best_dots();
    std::vector<const float *> from, to;
    for (const int32_t i : sources) { from.push_back(features.data() + (size_t) i*width); }
    for (const int32_t i : targets) { to.push_back(features.data() + (size_t) i*width); }
    const int n = sources.size(), m = targets.size();
    best.assign(n, 0);
    likeness.assign(n, -INFINITY);
    workers.each((n + block - 1)/block, [&](int item) {
        const int first = item*block, count = std::min(block, n - first);
        std::vector<float> found((size_t) count*block);
        for (int j = 0; j < m; j += block) {
            const int width_j = std::min(block, m - j);
            dots(from.data() + first, count, to.data() + j, width_j, width, found.data(), block);
            for (int i = 0; i < count; ++i) {
                for (int k = 0; k < width_j; ++k) {
                    if (found[i*block + k] > likeness[first + i]) {
                        likeness[first + i] = found[i*block + k];
                        best[first + i] = j + k;
                    }
                }
            }
        }
    });
}

std::vector<int32_t> merge_rows(float * rows, int32_t stride, int32_t width, std::vector<int32_t> open, int32_t n_left, int32_t n_threads) {
    worker_pool workers(std::clamp(n_threads, 1, cover_workers_max));
    while ((int32_t) open.size() > std::max(n_left, 1)) {
        const int32_t n = open.size();
        std::vector<int32_t> sources, targets, best, order;
        for (int32_t i = 0; i < n; ++i) { ((n - 1 - i)%2 ? sources : targets).push_back(i); }
        std::vector<float> likeness;
        find_alike(directions(rows, stride, width, open), width, sources, targets, best, likeness, workers);

        order.resize(sources.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return likeness[a] > likeness[b]; });
        order.resize(std::min<size_t>(order.size(), n - std::max(n_left, 1)));

        std::vector<int32_t> n_joined(targets.size(), 0);
        std::vector<bool> gone(n);
        for (const int32_t i : order) {
            const float * from = rows + (size_t) open[sources[i]]*stride;
            float * to = rows + (size_t) open[targets[best[i]]]*stride;
            for (int32_t k = 0; k < stride; ++k) { to[k] += from[k]; }
            ++n_joined[best[i]];
            gone[sources[i]] = true;
        }
        for (size_t j = 0; j < targets.size(); ++j) {
            float * row = rows + (size_t) open[targets[j]]*stride;
            for (int32_t k = 0; k < stride && n_joined[j] > 0; ++k) { row[k] /= n_joined[j] + 1; }
        }
        std::vector<int32_t> left;
        for (int32_t i = 0; i < n; ++i) {
            if (!gone[i]) { left.push_back(open[i]); }
        }
        open = std::move(left);
    }
    return open;
}

void keep_rows(std::vector<float> & rows, int32_t stride, int32_t width, const std::vector<rows_of_batch> & pictures, int32_t n_threads) {
    float * from = rows.data();
    float * to = rows.data(); // never beyond `from`
    for (const auto & [n, plan] : pictures) {
        if (plan) {
            auto open = open_rows(n, plan->structure);
            if (plan->n_merged > 0) { open = merge_rows(from, stride, width, std::move(open), plan->n_merged, n_threads); }
            const auto kept = choose_among({ from, n, stride, width }, open, *plan, n_threads);
            for (const int32_t i : kept) {
                to = std::copy_n(from + (size_t) i*stride, stride, to);
            }
            plan->kept = kept;
        } else {
            to = std::copy_n(from, (size_t) n*stride, to);
        }
        from += (size_t) n*stride;
    }
    rows.resize(to - rows.data());
}

} // namespace halfv
