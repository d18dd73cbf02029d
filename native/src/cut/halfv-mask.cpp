#include "halfv-mask.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
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

} // namespace halfv
