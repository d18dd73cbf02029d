#pragma once

// Rows of a picture that are no patches: embeddings that projectors put between and around them. Tokens of text around a
// picture or between its tiles are no rows of it. For mtmd.cpp, which knows clip.

#include "clip-impl.h"
#include "clip.h"

#include <cmath>
#include <optional>
#include <vector>

namespace halfv {

// Ascending; none for a picture whose rows have to stay together.
inline std::optional<std::vector<int32_t>> structure_rows(const clip_ctx * ctx, const clip_image_f32 & img, int32_t n) {
    const auto & hparams = *clip_get_hparams(ctx);
    const int32_t columns = img.nx()/hparams.patch_size, lines = img.ny()/hparams.patch_size; // of the encoder's own patches
    std::vector<int32_t> rows;
    // a row of its own behind each of so many lines, unless the picture ends with the line
    const auto line_ends = [&](int32_t first, int32_t n_columns, int32_t n_lines) {
        for (int32_t i = 1; i <= n_lines; ++i) {
            if (const int32_t at = first + i*(n_columns + 1) - 1; at < n) { rows.push_back(at); }
        }
    };
    switch (clip_get_projector_type(ctx)) {
        case PROJECTOR_TYPE_LDP:
        case PROJECTOR_TYPE_LDPV2:
        case PROJECTOR_TYPE_GLM_EDGE:
        case PROJECTOR_TYPE_COGVLM:
            if (n == columns*lines + 2 || n == columns*lines/4 + 2) { rows = { 0, n - 1 }; }
            break;
        case PROJECTOR_TYPE_PIXTRAL:
        case PROJECTOR_TYPE_LIGHTONOCR:
            if (const int32_t across = columns/hparams.n_merge, down = lines/hparams.n_merge; n > across*down) {
                line_ends(0, across, down);
            }
            break;
        case PROJECTOR_TYPE_HUNYUANVL:
            rows = { 0 };
            line_ends(1, columns/hparams.n_merge, lines/hparams.n_merge);
            rows.push_back(n - 1);
            break;
        case PROJECTOR_TYPE_DEEPSEEKOCR:
            if (const int32_t side = std::lround(std::sqrt(columns*lines/16)); img.add_viewsep) {
                line_ends(0, side, side);
                rows.push_back(n - 1);
            } else if (const int32_t high = columns/4; high > 0 && n != columns*lines/16) {
                line_ends(0, n/high - 1, high);
            }
            break;
        case PROJECTOR_TYPE_DEEPSEEKOCR2:
            if (img.add_viewsep) { rows = { n - 1 }; }
            break;
        case PROJECTOR_TYPE_GRANITE4_VISION:
            if (img.anyres.is_tiled()) { // an overview, then the tiles line by line
                const int32_t side = columns/hparams.downsample_window_side*hparams.downsample_query_side;
                int off_x, off_y, w, h;
                clip_anyres_unpad(img.anyres.grid_x*side, img.anyres.grid_y*side, img.anyres.orig_nx, img.anyres.orig_ny, off_x, off_y, w, h);
                line_ends(side*side, w, h);
            }
            break;
        case PROJECTOR_TYPE_DEEPSEEK4V: // its language model compresses four neighbours into one
            return std::nullopt;
        default:
            break;
    }
    return rows;
}

} // namespace halfv
