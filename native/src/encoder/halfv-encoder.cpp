#include "halfv-encoder.h"
#include "halfv-attend.h"

#include <algorithm>

namespace halfv {

std::vector<grid_window> grid_windows(int width, int height, int side) {
    std::vector<grid_window> windows;
    for (int y = 0; y < height; y += side) {
        for (int x = 0; x < width; x += side) {
            windows.push_back({ x, y, std::min(side, width - x), std::min(side, height - y) });
        }
    }
    std::stable_sort(windows.begin(), windows.end(), [](const grid_window & a, const grid_window & b) {
        return a.width*a.height > b.width*b.height;
    });
    return windows;
}

// Flash attention of ggml's CUDA backend has no kernel for tensor cores with heads of 72, which SigLIP and the encoders of
// Qwen3-VL and later have; one for 80 it has.
constexpr int SLOW_HEAD   = 72;
constexpr int PADDED_HEAD = 80;

// With no more keys than these it costs less that a head's keys lie apart than to bring them together.
constexpr int64_t FEW_KEYS = 4096;

static bool runs_on_cpu(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && t->nb[0] == sizeof(float);
}

// in pairs, so that a token is copied log2(parts) times
static ggml_tensor * join(ggml_context * ctx, std::vector<ggml_tensor *> parts) {
    while (parts.size() > 1) {
        std::vector<ggml_tensor *> pairs;
        for (size_t i = 0; i + 1 < parts.size(); i += 2) {
            pairs.push_back(ggml_concat(ctx, parts[i], parts[i + 1], 1));
        }
        if (parts.size() % 2) {
            pairs.push_back(parts.back());
        }
        parts = std::move(pairs);
    }
    return parts[0];
}

void encoder_attention::runs_on(ggml_backend_t backend) {
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    const std::string name = ggml_backend_reg_name(ggml_backend_dev_backend_reg(device));
    on_cpu = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    pads   = name == "CUDA" || name == "ROCm" || name == "MUSA"; // one source, three names
}

static ggml_tensor * attend(
        ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, float scale, bool flash, bool pad) {
    const int64_t n_tokens = q->ne[2]*q->ne[3], d_head = q->ne[0];
    const auto by_head = [&](ggml_tensor * t) { return ggml_permute(ctx, t, 0, 2, 1, 3); };
    if (flash) {
        if (pad) { // zeros add nothing to a score, and give columns that are cut off
            for (ggml_tensor ** t : { &q, &k, &v }) {
                *t = ggml_pad(ctx, ggml_is_contiguous(*t) ? *t : ggml_cont(ctx, *t), PADDED_HEAD - d_head, 0, 0, 0);
            }
        }
        const auto halves = [&](ggml_tensor * t) {
            return k->ne[2] <= FEW_KEYS ? by_head(ggml_cast(ctx, t, GGML_TYPE_F16)) : ggml_cast(ctx, by_head(t), GGML_TYPE_F16);
        };
        ggml_tensor * out = ggml_flash_attn_ext(ctx, by_head(q), halves(k), halves(v), nullptr, scale, 0.0f, 0.0f);
        ggml_prec_set_acc(out, GGML_PREC_F32);
        if (out->ne[0] > d_head) {
            out = ggml_cont(ctx, ggml_view_4d(ctx, out, d_head, out->ne[1], out->ne[2], out->ne[3], out->nb[1], out->nb[2], out->nb[3], 0));
        }
        return ggml_reshape_2d(ctx, out, out->ne[0]*out->ne[1], n_tokens);
    }
    v = ggml_cont(ctx, ggml_permute(ctx, v, 1, 2, 0, 3));
    ggml_tensor * weights = ggml_soft_max_ext(ctx, ggml_mul_mat(ctx, by_head(k), by_head(q)), nullptr, scale, 0.0f);
    ggml_tensor * out = ggml_permute(ctx, ggml_mul_mat(ctx, v, weights), 0, 2, 1, 3);
    return ggml_cont_2d(ctx, out, out->ne[0]*out->ne[1], n_tokens);
}

ggml_tensor * encoder_attention::build(
        ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, const ggml_tensor * mask, float scale,
        bool flash) const {
    const attend_with with = best_attend();
    const bool fast = level == HALFV_ATTENTION_FAST && on_cpu && flash && with != attend_with::GGML &&
                      runs_on_cpu(q) && runs_on_cpu(k) && runs_on_cpu(v);
    const bool pad = level == HALFV_ATTENTION_FAST && pads && flash && q->ne[0] == SLOW_HEAD;
    if (!mask) {
        return fast ? attend_cpu(ctx, with, q, k, v, scale) : pad ? attend(ctx, q, k, v, scale, flash, pad) : nullptr;
    }
    if (level == HALFV_ATTENTION_STOCK || windows.empty()) {
        return nullptr;
    }
    GGML_ASSERT(q->ne[3] == 1);
    std::vector<ggml_tensor *> parts;
    int64_t first = 0;
    for (size_t i = 0; i < windows.size();) {
        const int64_t length = windows[i];
        int64_t count = 0;
        while (i < windows.size() && windows[i] == length) {
            ++i;
            ++count;
        }
        auto run = [&](ggml_tensor * t) {
            return ggml_view_4d(ctx, t, t->ne[0], t->ne[1], length, count, t->nb[1], t->nb[2], t->nb[2]*length, t->nb[2]*first);
        };
        parts.push_back(fast ? attend_cpu(ctx, with, run(q), run(k), run(v), scale)
                             : attend(ctx, run(q), run(k), run(v), scale, flash, pad));
        first += length*count;
    }
    GGML_ASSERT(first == q->ne[2]);
    return join(ctx, std::move(parts));
}

} // namespace halfv
