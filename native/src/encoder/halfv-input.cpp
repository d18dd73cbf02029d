#include "halfv-input.h"

#include "halfv-selection.h"
#include "halfv-workers.h"

#include <algorithm>
#include <cstdio>
#include <functional>

namespace halfv {

static bool ascending_in(const std::vector<int32_t> & rows, int32_t n) {
    return std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<>()) == rows.end() &&
        (rows.empty() || (rows.front() >= 0 && rows.back() < n));
}

bool picture_rows::valid() const {
    return n_kept > 0 && n_kept < n && ascending_in(kept, n) && (kept.empty() || (int32_t) kept.size() == n_kept);
}

picture_rows plan_rows(int32_t n, std::vector<int32_t> structure, float keep, uint32_t min_visual_tokens) {
    picture_rows plan = { n, n, std::move(structure), {} };
    const int32_t n_free = n - (int32_t) plan.structure.size();
    if (n_free > 0 && (uint32_t) n >= min_visual_tokens && keep < 1.0f) {
        plan.n_kept -= n_free - std::max(1, quota(n_free, keep));
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

std::vector<int32_t> choose_rows(const encoded_picture & picture, const picture_rows & plan, int32_t n_threads) {
    std::vector<int32_t> open; // rows that may be left out
    auto next = plan.structure.begin();
    for (int32_t i = 0; i < picture.n; ++i) {
        if (next != plan.structure.end() && *next == i) {
            ++next;
        } else {
            open.push_back(i);
        }
    }
    const size_t width = picture.width;
    std::vector<float> features(open.size()*width);
    for (size_t i = 0; i < open.size(); ++i) {
        std::copy_n(picture.rows + (size_t) open[i]*picture.stride, width, features.data() + i*width);
    }
    const int n_open = open.size();
    final_norm_features(features.data(), nullptr, n_open, picture.width, features.data());
    worker_pool workers(std::clamp(n_threads, 1, cover_workers_max));
    std::vector<int32_t> kept = plan.structure;
    for (const int32_t i : cover(features.data(), n_open, picture.width, { n_open - 1 }, plan.n_kept - (int) kept.size(), &workers)) {
        kept.push_back(open[i]);
    }
    std::sort(kept.begin(), kept.end());
    return kept;
}

void keep_rows(std::vector<float> & rows, int32_t stride, int32_t width, const std::vector<rows_of_batch> & pictures, int32_t n_threads) {
    const float * from = rows.data();
    float * to = rows.data(); // never beyond `from`
    for (const auto & [n, plan] : pictures) {
        if (plan) {
            const auto kept = choose_rows({ from, n, stride, width }, *plan, n_threads);
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
