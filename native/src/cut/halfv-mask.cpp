#include "halfv-mask.h"
#include "halfv-memory.h"

#include "llama-hparams.h"

#include "ggml-backend.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

namespace halfv {

namespace {

// tokens see those that are not behind them: by position, then by row and column of a picture
struct place {
    llama_pos pos, y, x;
    uint32_t  index; // of a cell, or in the batch
    bool operator<=(const place & o) const { return std::tie(pos, y, x) <= std::tie(o.pos, o.y, o.x); }
    bool operator< (const place & o) const { return std::tie(pos, y, x, index) < std::tie(o.pos, o.y, o.x, o.index); }
};

void sort(std::vector<place> & places) {
    if (!std::is_sorted(places.begin(), places.end())) { std::sort(places.begin(), places.end()); }
}

template <typename T>
void write(T * out, int64_t n_kv, T seen, T hidden, const std::vector<place> & held, const std::vector<place> & asking) {
    std::vector<T> row(n_kv, hidden);
    auto next = held.begin();
    for (const auto & token : asking) {
        for (; next != held.end() && *next <= token; ++next) { row[next->index] = seen; }
        memcpy(out + token.index*n_kv, row.data(), n_kv*sizeof(T));
    }
}

} // namespace

bool is_one_sequence(const ggml_tensor * mask, const llama_ubatch & ubatch) {
    return ubatch.n_tokens > 1 && ubatch.n_seqs_unq == 1 && mask->ne[3] == 1 && mask->buffer && ggml_backend_buffer_is_host(mask->buffer);
}

void set_causal_mask(ggml_tensor * mask, const llama_kv_cells & cells, const llama_ubatch & ubatch) {
    const int64_t n_kv  = mask->ne[0];
    const uint32_t n    = ubatch.n_tokens;
    const bool is_2d    = ubatch.is_pos_2d();
    std::vector<place> held, asking;
    for (uint32_t j = 0; j < n_kv; ++j) {
        if (!cells.is_empty(j) && cells.seq_has(j, ubatch.seq_id_unq[0])) {
            const auto ext = is_2d ? cells.ext_get(j) : llama_kv_cell_ext();
            held.push_back({ cells.pos_get(j), is_2d ? ext.y : 0, is_2d ? ext.x : 0, j });
        }
    }
    for (uint32_t i = 0; i < n; ++i) {
        asking.push_back({ ubatch.pos[i], is_2d ? ubatch.pos[i + n] : 0, is_2d ? ubatch.pos[i + 2*n] : 0, i });
    }
    sort(held);
    sort(asking);
    if (mask->type == GGML_TYPE_F16) {
        write((ggml_fp16_t *) mask->data, n_kv, ggml_fp32_to_fp16(0.0f), ggml_fp32_to_fp16(-INFINITY), held, asking);
    } else {
        write((float *) mask->data, n_kv, 0.0f, -INFINITY, held, asking);
    }
}

// Told apart by all of their positions, as an M-RoPE picture's tokens share the first.
std::vector<staged_memory::raised_cell> staged_memory::raised_cells(int s, llama_seq_id seq_id) const {
    std::vector<raised_cell> res;
    const auto * found = s > 0 && profile.ivr_bias > 0.0f ? find(seq_id) : nullptr;
    if (!found) {
        return res;
    }
    const bool is_2d = hparams.n_pos_per_embd() > 1;
    const auto & cells = stages[s]->get_cells(seq_id);
    const auto & held  = cells.seq_pos_get(seq_id);
    using token = std::pair<std::array<llama_pos, 3>, uint32_t>; // where it is, and what it stands for
    std::vector<token> tokens;
    for (const auto & im : found->images) {
        const auto & counts = im.stands_for[s - 1];
        for (size_t i = 0; i < counts.size(); ++i) {
            if (counts[i] > 1) { tokens.push_back({ { im.positions[i], is_2d ? im.places[i][0] : 0, is_2d ? im.places[i][1] : 0 }, counts[i] }); }
        }
    }
    if (tokens.empty()) {
        return res;
    }
    std::sort(tokens.begin(), tokens.end());
    for (auto it = held.lower_bound({ tokens.front().first[0], 0 }); it != held.end() && it->first <= tokens.back().first[0]; ++it) {
        const auto ext = is_2d ? cells.ext_get(it->second) : llama_kv_cell_ext();
        const std::array<llama_pos, 3> place = { it->first, is_2d ? ext.y : 0, is_2d ? ext.x : 0 };
        const auto at = std::lower_bound(tokens.begin(), tokens.end(), token(place, 0));
        if (at != tokens.end() && at->first == place) { res.push_back({ it->second, profile.ivr_bias*std::log((float) at->second) }); }
    }
    return res;
}

void raise_mask(ggml_tensor * mask, const staged_context & staged, int s, const llama_ubatch & ubatch) {
    if (staged.profile().ivr_bias <= 0.0f) {
        return;
    }
    std::map<llama_seq_id, std::vector<staged_memory::raised_cell>> of;
    const int64_t n_stream = mask->ne[3], n_of_stream = ubatch.n_tokens/n_stream;
    for (int64_t i = 0; i < (int64_t) ubatch.n_tokens; ++i) {
        const llama_seq_id seq_id = ubatch.seq_id[i][0];
        auto found = of.find(seq_id);
        if (found == of.end()) { found = of.emplace(seq_id, staged.raised_cells(s, seq_id)).first; }
        char * row = (char *) mask->data + i/n_of_stream*mask->nb[3] + i%n_of_stream*mask->nb[1];
        for (const auto & raised : found->second) {
            if (mask->type == GGML_TYPE_F16) {
                auto & value = ((ggml_fp16_t *) row)[raised.cell];
                value = ggml_fp32_to_fp16(ggml_fp16_to_fp32(value) + raised.by);
            } else {
                ((float *) row)[raised.cell] += raised.by;
            }
        }
    }
}

} // namespace halfv
