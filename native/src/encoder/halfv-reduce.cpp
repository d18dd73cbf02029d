#include "halfv-reduce.h"

#include "halfv-dots.h"
#include "halfv-selection.h"
#include "halfv-workers.h"

#include "ggml-backend.h"

#include <algorithm>
#include <numeric>

namespace halfv {

static const char * const STATES = "halfv_states"; // inputs
static const char * const KEPT   = "halfv_kept";
static const char * const LIKE   = "halfv_like";
static const char * const GIVEN  = "halfv_given";

namespace {
struct chosen_groups {
    std::vector<int32_t> kept, like;
};

class picture {
public:
    picture(const float * states, int32_t n, size_t width) : n(n), width(width), rows(n*width) {
        std::vector<double> mean(width);
        for (int32_t i = 0; i < n; ++i) {
            for (size_t x = 0; x < width; ++x) {
                mean[x] += states[i*width + x]/(double) n;
            }
        }
        for (size_t i = 0; i < rows.size(); ++i) {
            rows[i] = states[i] - mean[i%width];
        }
        final_norm_features(rows.data(), nullptr, n, width, rows.data());
    }

    // how like each group is to the one beside it that it is most like
    std::vector<float> foretold(int32_t columns, const std::vector<int32_t> & places) const {
        const auto place = [&](int32_t i) { return places.empty() ? i : places[i]; };
        const int32_t lines = place(n - 1)/columns + 1;
        std::vector<int32_t> at((size_t) lines*columns, -1);
        for (int32_t i = 0; i < n; ++i) {
            at[place(i)] = i;
        }
        std::vector<float> out(n, -1.0f);
        for (int32_t i = 0; i < n; ++i) {
            const int32_t y = place(i)/columns, x = place(i)%columns;
            // those to the right and below; the others have met this one
            for (const auto & [dx, dy] : { std::pair(1, 0), std::pair(-1, 1), std::pair(0, 1), std::pair(1, 1) }) {
                const bool inside = x + dx >= 0 && x + dx < columns && y + dy < lines;
                const int32_t j = inside ? at[(y + dy)*columns + x + dx] : -1;
                if (j >= 0) {
                    const float * a = row(i);
                    const float * b = row(j);
                    float alike;
                    dots(&a, 1, &b, 1, width, &alike, 1);
                    out[i] = std::max(out[i], alike);
                    out[j] = std::max(out[j], alike);
                }
            }
        }
        return out;
    }

    chosen_groups choose(const std::vector<float> & alike, float keep, worker_pool & workers) const {
        const int32_t n_kept = encoder_reduction{ 0, keep, n }.n_seen();
        std::vector<int32_t> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return alike[a] < alike[b]; });
        chosen_groups out = { { order.begin(), order.begin() + n_kept }, std::vector<int32_t>(n) };
        std::sort(out.kept.begin(), out.kept.end());
        std::vector<const float *> kept;
        for (const int32_t i : out.kept) {
            kept.push_back(row(i));
        }
        workers.each(n, [&](int i) {
            const auto self = std::lower_bound(out.kept.begin(), out.kept.end(), i);
            if (self != out.kept.end() && *self == i) {
                out.like[i] = self - out.kept.begin();
                return;
            }
            std::vector<float> to(n_kept);
            const float * from = row(i);
            dots(&from, 1, kept.data(), n_kept, width, to.data(), n_kept);
            out.like[i] = std::max_element(to.begin(), to.end()) - to.begin();
        });
        return out;
    }

private:
    const float * row(int32_t i) const { return rows.data() + i*width; }

    const dots_fn dots = best_dots();
    int32_t n;
    size_t width;
    std::vector<float> rows; // without what all have in common, of length 1
};
} // namespace

int32_t encoder_reduction::n_seen() const {
    return std::clamp(quota(n, keep), 1, n);
}

encoder_run encoder_run::after(const encoder_run & run, group_states groups, int32_t n_embd, float keep, int32_t n_threads) {
    encoder_run out;
    out.part = second;
    out.layer = run.layer;
    out.n_patches = run.n_patches;
    const size_t width = (size_t) n_embd*run.n_patches;
    const int32_t n_all = groups.states.size()/width, n_each = n_all/groups.n_pictures, n = n_each - groups.n_lead;
    worker_pool workers(std::clamp(n_threads, 1, cover_workers_max));
    for (int32_t begin = 0; begin < n_all; begin += n_each) {
        const int32_t n_before = out.kept.size();
        for (int32_t i = 0; i < groups.n_lead; ++i) {
            out.kept.push_back(begin + i);
            out.like.push_back(n_before + i);
        }
        const picture pic(groups.states.data() + (begin + groups.n_lead)*width, n, width);
        const auto chosen = pic.choose(pic.foretold(groups.columns, groups.places), keep, workers);
        for (const int32_t i : chosen.kept) { out.kept.push_back(begin + groups.n_lead + i); }
        for (const int32_t i : chosen.like) { out.like.push_back(n_before + groups.n_lead + i); }
    }
    out.states = std::move(groups.states);
    return out;
}

int32_t encoder_run::n_inside(int32_t n, int32_t n_pictures) const {
    return part == second ? (int32_t) kept.size()/n_pictures*n_patches : n;
}

static ggml_tensor * input(ggml_context * ctx, ggml_type type, const char * name, int64_t ne0, int64_t ne1 = 1) {
    ggml_tensor * t = ggml_new_tensor_2d(ctx, type, ne0, ne1);
    ggml_set_name(t, name);
    ggml_set_input(t);
    return t;
}

// the input of this name, which several places ask for
static ggml_tensor * indices(ggml_context * ctx, const char * name, int64_t n) {
    ggml_tensor * there = ggml_get_tensor(ctx, name);
    return there ? there : input(ctx, GGML_TYPE_I32, name, n);
}

ggml_tensor * encoder_run::enter(ggml_context * ctx, ggml_tensor * patches) const {
    if (part != second) {
        return patches;
    }
    const int64_t n_embd = patches->ne[0];
    ggml_tensor * states = input(ctx, GGML_TYPE_F32, STATES, n_embd*n_patches, like.size());
    ggml_tensor * rows   = indices(ctx, KEPT, kept.size());
    return ggml_reshape_2d(ctx, ggml_get_rows(ctx, states, rows), n_embd, kept.size()*n_patches);
}

ggml_tensor * encoder_run::positions(ggml_context * ctx, ggml_tensor * all) const {
    if (part != second) {
        return all;
    }
    const int64_t n = like.size(), n_sections = all->ne[0]/n_patches/n;
    ggml_tensor * rows = indices(ctx, KEPT, kept.size());
    ggml_tensor * out = nullptr;
    for (int64_t i = 0; i < n_sections; ++i) {
        ggml_tensor * section = ggml_view_2d(ctx, all, n_patches, n, n_patches*sizeof(int32_t), i*n*n_patches*sizeof(int32_t));
        section = ggml_reshape_1d(ctx, ggml_get_rows(ctx, section, rows), kept.size()*n_patches);
        out = out ? ggml_concat(ctx, out, section, 0) : section;
    }
    return out;
}

void encoder_run::trim(ggml_context * ctx, ggml_cgraph * graph) const {
    if (part != first) {
        return;
    }
    ggml_tensor * last = ggml_graph_get_tensor(graph, GIVEN);
    ggml_graph_clear(graph);
    ggml_build_forward_expand(graph, last);
    for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
        if (t->flags & GGML_TENSOR_FLAG_INPUT) { ggml_build_forward_expand(graph, t); }
    }
}

ggml_tensor * encoder_run::leave(
        ggml_context * ctx, ggml_cgraph * graph, ggml_tensor * patches, ggml_tensor * entered, ggml_tensor * order) const {
    if (part == whole) {
        return patches;
    }
    const int64_t n_embd = patches->ne[0], n = ggml_nelements(patches)/n_embd/n_patches;
    if (part == first) {
        ggml_tensor * out = ggml_reshape_2d(ctx, patches, n_embd*n_patches, n);
        out = order ? ggml_get_rows(ctx, out, order) : ggml_cont(ctx, out);
        ggml_set_name(out, GIVEN);
        ggml_set_output(out);
        ggml_build_forward_expand(graph, out);
        return patches;
    }
    ggml_tensor * change = ggml_reshape_2d(ctx, ggml_sub(ctx, patches, entered), n_embd*n_patches, n);
    if (order) {
        change = ggml_get_rows(ctx, change, order);
    }
    ggml_tensor * states = ggml_get_tensor(ctx, STATES);
    ggml_tensor * from   = indices(ctx, LIKE, like.size()); // DeepStack comes here more than once
    ggml_tensor * all = ggml_add(ctx, states, ggml_get_rows(ctx, change, from));
    return ggml_reshape_2d(ctx, all, n_embd, (int64_t) like.size()*n_patches);
}

void encoder_run::set_inputs(ggml_cgraph * graph) const {
    if (part != second) {
        return;
    }
    const auto set = [&](const char * name, const auto & values) {
        ggml_backend_tensor_set(ggml_graph_get_tensor(graph, name), values.data(), 0, values.size()*sizeof(values[0]));
    };
    set(STATES, states);
    set(KEPT, kept);
    set(LIKE, like);
}

std::vector<float> encoder_run::given(ggml_cgraph * graph) {
    const ggml_tensor * t = ggml_graph_get_tensor(graph, GIVEN);
    std::vector<float> out(ggml_nelements(t));
    ggml_backend_tensor_get(t, out.data(), 0, ggml_nbytes(t));
    return out;
}

} // namespace halfv
