#include "halfv-neighbours.h"

#include "halfv-graph.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace halfv {

constexpr int64_t least_block = 64; // tokens: fewer would gather the same keys more often

picture_places::picture_places(const sequence * s, bool is_2d) : is_2d(is_2d) {
    for (size_t i = 0; s && i < s->images.size(); ++i) {
        const auto & im = s->images[i];
        if (!im.narrow || im.positions.empty()) {
            continue;
        }
        const llama_pos first = im.positions.front(), last = im.positions.back();
        const int32_t side = std::lround(std::sqrt((double) im.n()));
        const bool is_square = side*side == im.n() && last - first + 1 == im.n();
        spans.push_back({ (int32_t) i, first, last, is_square && !is_2d ? side : 0 });
    }
    std::sort(spans.begin(), spans.end(), [](const span & a, const span & b) { return a.first < b.first; });
}

picture_places::place picture_places::at(llama_pos pos, llama_pos y, llama_pos x) const {
    place res;
    res.pos = pos;
    res.y   = is_2d ? y : 0;
    res.x   = is_2d ? x : 0;
    const auto next = std::upper_bound(spans.begin(), spans.end(), pos, [](llama_pos p, const span & o) { return p < o.first; });
    if (next == spans.begin() || pos > std::prev(next)->last) {
        return res;
    }
    const auto & in = *std::prev(next);
    res.image = in.image;
    if (is_2d) {
        res.frame  = pos;
        res.row    = res.y;
        res.column = res.x;
    } else if (in.n_columns > 0) {
        res.row    = (pos - in.first)/in.n_columns;
        res.column = (pos - in.first)%in.n_columns;
    }
    return res;
}

bool near_keys::sees(const picture_places::place & token, const picture_places::place & key) const {
    const int32_t reach = (int32_t) staged->profile().neighbours_width/2;
    if (!key.is_before(token) || (key.image >= 0 && key.image != token.image)) {
        return false;
    }
    return key.image < 0 || key.row < 0 ||
           (key.frame == token.frame && token.row - key.row <= reach && std::abs(token.column - key.column) <= reach);
}

near_keys::plan near_keys::planned(const llama_ubatch & ubatch) const {
    const auto id = ubatch.seq_id_unq[0];
    const bool is_2d = ubatch.is_pos_2d();
    const picture_places places(staged->of(id), is_2d);
    const auto & cells = staged->cells(s, id);
    const uint32_t n = ubatch.n_tokens;
    plan res;
    std::vector<uint32_t> text;
    std::map<int32_t, std::vector<uint32_t>> pictures;
    for (uint32_t j = 0; j < cells.used_max_p1(); ++j) {
        if (cells.is_empty(j) || !cells.seq_has(j, id)) {
            continue;
        }
        const auto ext = is_2d ? cells.ext_get(j) : llama_kv_cell_ext();
        res.held.push_back(places.at(cells.pos_get(j), ext.y, ext.x));
        res.cells.push_back(j);
        const int32_t image = res.held.back().image;
        (image < 0 ? text : pictures[image]).push_back(res.held.size() - 1);
    }
    for (uint32_t i = 0; i < n; ++i) {
        res.asking.push_back(is_2d ? places.at(ubatch.pos[i], ubatch.pos[i + n], ubatch.pos[i + 2*n]) : places.at(ubatch.pos[i]));
    }
    res.n_block  = GGML_PAD(std::min<int64_t>(n, std::max<int64_t>(least_block, text.size())), 32); // text is gathered once for each
    res.n_blocks = (n + res.n_block - 1)/res.n_block;
    res.n_keys   = 0;
    const int32_t reach = (int32_t) staged->profile().neighbours_width/2;
    for (int64_t first = 0; first < n; first += res.n_block) {
        std::map<int32_t, std::pair<int32_t, int32_t>> rows; // of each picture that the block is of
        for (int64_t i = first; i < std::min<int64_t>(n, first + res.n_block); ++i) {
            const auto & token = res.asking[i];
            auto & range = rows.emplace(token.image, std::make_pair(token.row, token.row)).first->second;
            range = { std::min(range.first, token.row), std::max(range.second, token.row) };
        }
        auto keys = text;
        for (const auto & [image, range] : rows) {
            for (const uint32_t index : pictures[image]) {
                const int32_t row = res.held[index].row;
                if (row < 0 || (row >= range.first - reach && row <= range.second)) { keys.push_back(index); }
            }
        }
        res.n_keys = std::max<int64_t>(res.n_keys, keys.size());
        res.keys.push_back(std::move(keys));
    }
    res.n_keys = GGML_PAD(res.n_keys, 64);
    return res;
}

near_keys::near_keys(const llm_graph_context & graph, const staged_context & staged, int s, ggml_type type_mask) : staged(&staged), s(s), n_tokens(graph.n_tokens) {
    const auto plan = planned(graph.ubatch);
    n_block  = plan.n_block;
    n_blocks = plan.n_blocks;
    n_keys   = plan.n_keys;
    ids  = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, n_keys*n_blocks);
    mask = ggml_new_tensor_4d(graph.ctx0, type_mask, n_keys, n_block, 1, n_blocks);
    for (auto * t : { ids, mask }) { ggml_set_input(t); }
}

bool near_keys::can_reuse(const llm_graph_params & params) {
    staged = as_staged(params.mctx);
    if (!staged || (int64_t) params.ubatch.n_tokens != n_tokens) {
        return false;
    }
    const auto plan = planned(params.ubatch);
    return plan.n_block == n_block && plan.n_keys == n_keys;
}

void near_keys::set_input(const llama_ubatch * ubatch) {
    const auto plan = planned(*ubatch);
    std::vector<int32_t> rows(n_keys*n_blocks, plan.cells[0]);
    std::vector<float> values(n_keys*n_block*n_blocks, -INFINITY);
    for (int64_t b = 0; b < n_blocks; ++b) {
        const auto & keys = plan.keys[b];
        for (size_t j = 0; j < keys.size(); ++j) { rows[b*n_keys + j] = plan.cells[keys[j]]; }
        for (int64_t i = 0; i < n_block; ++i) {
            float * row = &values[(b*n_block + i)*n_keys];
            if (b*n_block + i >= n_tokens) { // padding, whose result nobody takes
                row[0] = 0.0f;
                continue;
            }
            for (size_t j = 0; j < keys.size(); ++j) {
                if (sees(plan.asking[b*n_block + i], plan.held[keys[j]])) { row[j] = 0.0f; }
            }
        }
    }
    ggml_backend_tensor_set(ids, rows.data(), 0, ggml_nbytes(ids));
    if (mask->type == GGML_TYPE_F16) {
        std::vector<ggml_fp16_t> halves(values.size());
        ggml_fp32_to_fp16_row(values.data(), halves.data(), values.size());
        ggml_backend_tensor_set(mask, halves.data(), 0, ggml_nbytes(mask));
    } else {
        ggml_backend_tensor_set(mask, values.data(), 0, ggml_nbytes(mask));
    }
}

ggml_tensor * near_keys::blocks(ggml_context * ctx0, ggml_tensor * q) const {
    const int64_t missing = n_block*n_blocks - n_tokens;
    return missing > 0 ? ggml_pad(ctx0, ggml_cont(ctx0, q), 0, 0, missing, 0) : q;
}

ggml_tensor * near_keys::gather(ggml_context * ctx0, ggml_tensor * t, bool transposed) const {
    if (transposed) { t = ggml_cont(ctx0, ggml_permute(ctx0, t, 2, 1, 0, 3)); }
    const int64_t width = t->ne[0], n_head = t->ne[1];
    ggml_tensor * rows = ggml_get_rows(ctx0, ggml_view_2d(ctx0, t, width*n_head, t->ne[2], t->nb[2], 0), ids);
    return ggml_reshape_4d(ctx0, rows, width, n_head, n_keys, n_blocks);
}

} // namespace halfv
