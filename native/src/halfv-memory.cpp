#include "halfv-memory.h"
#include "halfv-cut.h"
#include "halfv-profile.h"

#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>

namespace halfv {

//
// staged_memory
//

// cells of a stage in a context of n_ctx tokens: as many as are asked for, or as the profile's shares come to
static uint32_t cells_of_stage(const halfv_profile & p, int s, uint32_t n_ctx, uint32_t wanted) {
    const double reach[n_stages] = { 1.0, p.ivr_keep, p.ssr_rest == HALFV_REST_FROZEN ? p.ivr_keep : std::min(p.ivr_keep, p.ssr_update) };
    const double shares = std::ceil(n_ctx*(1.0 - p.visual_share*(1.0 - reach[s])));
    const uint64_t n = wanted > 0 ? wanted : std::max<uint64_t>(1, shares);
    return std::min<uint64_t>(n_ctx, GGML_PAD(n, 256));
}

staged_memory::staged_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                             const halfv_profile & profile) :
    bounds{ 0, (int32_t) profile.ivr_layer, (int32_t) profile.ssr_layer, (int32_t) model.hparams.n_layer() },
    profile(profile),
    n_hidden(input_width(model.hparams, bounds[1])),
    n_key(model.hparams.n_embd_k_gqa(bounds[1])),
    n_vocab(model.vocab.n_tokens()),
    stores{ state_store(n_hidden), state_store(n_key), state_store(model.hparams.n_head(bounds[1] - 1)*model.hparams.n_embd_head_k(bounds[1] - 1)) },
    hparams(model.hparams),
    cparams(cparams) {
    static const char * const tags[n_stages] = { "stage1_", "stage2_", "stage3_" };

    const auto wanted = model.halfv_profile->stage_cells();
    for (int s = 0; s < n_stages; ++s) {
        if (!has_stage(s)) {
            continue;
        }
        const uint32_t size   = cells_of_stage(profile, s, cparams.n_ctx_seq, wanted[s]);
        const int32_t  first  = bounds[s], last = bounds[s + 1];

        stages[s] = std::make_unique<llama_kv_cache>(
                model, model.hparams, params.type_k, params.type_v, !cparams.flash_attn, cparams.offload_kqv, cparams.kv_unified,
                size, cparams.n_seq_max, 1, 0, LLAMA_SWA_TYPE_NONE, nullptr,
                [first, last](int32_t il) { return il >= first && il < last; }, nullptr, nullptr, tags[s]);
    }
    reserve_states(model);
}

// Rows for the states of all tokens that may wait, and of those that go on, where stage I ends: if that is a device, up to
// what undoing takes at most by default. What does not fit is on the host.
void staged_memory::reserve_states(const llama_model & model) {
    constexpr uint64_t most = 256ull << 20;
    auto * device = model.dev_layer(bounds[1] - 1);
    if (!device || ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU || n_hidden != model.hparams.n_embd) {
        return; // rows that deep-stack layers add later go through the host
    }
    if (const char * where = getenv("HALFV_STATES"); where && strcmp(where, "host") == 0) {
        return; // to compare with
    }
    auto * type = ggml_backend_dev_buffer_type(device);
    if (ggml_backend_buft_is_host(type)) {
        return;
    }
    const uint64_t n_cells = (uint64_t) stages[0]->get_size()*n_stream();
    const uint64_t n_rows  = std::min<uint64_t>(n_cells*(1.0 + profile.ivr_keep), most/((n_hidden + n_key)*sizeof(float)));
    const bool no_alloc = model.hparams.no_alloc;
    if (stores.keys.reserve(type, n_rows, no_alloc) && stores.queries.reserve(type, 4*cparams.n_seq_max, no_alloc) &&
        stores.hidden.reserve(type, n_rows, no_alloc)) {
        LLAMA_LOG_INFO("HalfV: states of %u tokens in a %s buffer of %.2f MiB\n", (uint32_t) n_rows, ggml_backend_buft_name(type),
                (stores.hidden.device_bytes() + stores.keys.device_bytes())/1048576.0);
    } else {
        LLAMA_LOG_WARN("HalfV: no room for states in %s memory: they go through the host\n", ggml_backend_buft_name(type));
    }
}

bool staged_memory::touches(const graph_pass & pass, int s) const {
    return has_stage(s) && bounds[s + 1] > pass.first && bounds[s] < pass.end(bounds[n_stages]);
}

void staged_memory::rewind(llama_seq_id seq_id, const graph_pass & pass) {
    for (int s = 0; s < n_stages; ++s) {
        if (touches(pass, s)) { stages[s]->seq_rm(seq_id, -1, -1); }
    }
    for (int s = 0; s + 1 < n_stages; ++s) {
        if (touches(pass, s) || touches(pass, s + 1)) { alike[s] = equal_cells(s); }
    }
}

bool staged_memory::one_mask(const graph_pass & pass) const {
    for (int s = 0; s + 1 < n_stages; ++s) {
        if (touches(pass, s) && touches(pass, s + 1) && !alike[s]) {
            return false;
        }
    }
    return true;
}

void staged_memory::find_alike() {
    for (int s = 0; s + 1 < n_stages; ++s) { alike[s] = alike[s] || equal_cells(s); }
}

bool staged_memory::equal_cells(int s) const {
    if (!has_stage(s + 1)) {
        return true;
    }
    for (uint32_t stream = 0; stream < n_stream(); ++stream) {
        const auto & a = stages[s]->get_cells(stream), & b = stages[s + 1]->get_cells(stream);
        if (a.get_used() != b.get_used() || a.used_max_p1() != b.used_max_p1()) {
            return false;
        }
        for (uint32_t i = 0; i < a.used_max_p1(); ++i) {
            if (a.is_empty(i) && b.is_empty(i)) {
                continue;
            }
            if (a.is_empty(i) || b.is_empty(i) || a.pos_get(i) != b.pos_get(i) || a.seq_get_all(i) != b.seq_get_all(i) ||
                a.ext_get(i).x != b.ext_get(i).x || a.ext_get(i).y != b.ext_get(i).y) {
                return false;
            }
        }
    }
    return true;
}

uint32_t staged_memory::ubatch_size(const graph_pass & pass, uint32_t n_new) const {
    if (one_mask(pass) || !cparams.causal_attn) {
        return cparams.n_ubatch;
    }
    uint64_t n_cells = 0;
    for (int s = 0; s < n_stages; ++s) {
        if (!touches(pass, s)) {
            continue;
        }
        uint32_t used = 0;
        for (uint32_t stream = 0; stream < n_stream(); ++stream) {
            used = std::max(used, stages[s]->get_cells(stream).used_max_p1());
        }
        n_cells += std::min<uint64_t>(stages[s]->get_size(), GGML_PAD((uint64_t) used + n_new, 256));
    }
    const uint64_t n = (uint64_t) cparams.n_ubatch*stages[0]->get_size()/std::max<uint64_t>(n_cells, 1); // none: nothing to run
    return std::clamp<uint64_t>(n, 1, cparams.n_ubatch);
}

bool staged_memory::get_can_shift() const {
    return stages[0]->get_can_shift();
}

void staged_memory::clear(bool data) {
    each_stage([&](llama_kv_cache & kv) { kv.clear(data); });
    sequences.clear();
    alike = { true, true };
}

// what `f` does to the pending tokens of a sequence, and what follows from it
template <typename F>
void staged_memory::change(llama_seq_id seq_id, F && f) {
    for (auto it = sequences.begin(); it != sequences.end();) {
        if (seq_id < 0 || it->first == seq_id) {
            f(it->second);
            if (it->second.empty()) {
                it = sequences.erase(it);
                continue;
            }
        }
        ++it;
    }
}

bool staged_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (running) {
        return true; // a batch that failed is about to be undone as a whole
    }
    std::map<llama_seq_id, llama_pos> last;
    for (const auto & [id, s] : sequences) { last[id] = seq_pos_max(id); }
    for (const auto & [id, pos] : last) {
        if ((seq_id < 0 || id == seq_id) && p1 >= 0 && p1 <= pos) { forget_preparation(id); }
    }

    bool res = true;
    each_stage([&](llama_kv_cache & kv) { res = kv.seq_rm(seq_id, p0, p1) && res; });
    change(seq_id, [&](sequence & s) { s.remove(p0, p1); });
    for (const auto & [id, pos] : last) {
        if (seq_id < 0 || id == seq_id) { undo(id, pos); }
    }
    change(seq_id, [](sequence &) {}); // what is empty now is gone, with its counters
    find_alike();
    return res;
}

// A copy takes the place of what the destination held there. In another stream it takes the place of everything.
void staged_memory::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    if (seq_id_src == seq_id_dst) {
        return;
    }
    const llama_pos last = seq_pos_max(seq_id_src);
    if (n_stream() > 1) {
        if (p0 > std::max(0, seq_pos_min(seq_id_src)) || (p1 >= 0 && p1 <= last)) {
            LLAMA_LOG_ERROR("%s: HalfV: positions [%d, %d) of sequence %d cannot be copied: caches that are not unified copy whole sequences\n",
                    __func__, p0, p1, seq_id_src);
            return;
        }
        p0 = p1 = -1;
    }
    seq_rm(seq_id_dst, p0, p1);
    each_stage([&](llama_kv_cache & kv) { kv.seq_cp(seq_id_src, seq_id_dst, p0, p1); });
    if (const auto * src = find(seq_id_src)) {
        const sequence copied = src->copy(p0, p1);
        if (!copied.empty()) {
            at(seq_id_dst).append(copied);
            forget_preparation(seq_id_dst); // it may have settings of its own
            undo(seq_id_dst, last);
        }
    }
}

void staged_memory::seq_keep(llama_seq_id seq_id) {
    // not by llama_kv_cache::seq_keep, which leaves the other streams alone
    for (llama_seq_id id = 0; id < (llama_seq_id) cparams.n_seq_max; ++id) {
        if (id != seq_id) { seq_rm(id, -1, -1); }
    }
}

void staged_memory::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    const llama_pos last = seq_pos_max(seq_id);
    each_stage([&](llama_kv_cache & kv) { kv.seq_add(seq_id, p0, p1, shift); });
    forget_preparation(seq_id);
    change(seq_id, [&](sequence & s) { s.add(p0, p1, shift); });
    undo(seq_id, last);
}

void staged_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    each_stage([&](llama_kv_cache & kv) { kv.seq_div(seq_id, p0, p1, d); });
    change(seq_id, [&](sequence & s) { s.divide(p0, p1, d); });
}

// every token goes through stage I, so its cache knows all positions
llama_pos staged_memory::seq_pos_min(llama_seq_id seq_id) const { return stages[0]->seq_pos_min(seq_id); }
llama_pos staged_memory::seq_pos_max(llama_seq_id seq_id) const { return stages[0]->seq_pos_max(seq_id); }

std::map<ggml_backend_buffer_type_t, size_t> staged_memory::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> res;
    each_stage([&](const llama_kv_cache & kv) {
        for (const auto & [buft, size] : kv.memory_breakdown()) { res[buft] += size; }
    });
    for (const auto * store : { &stores.hidden, &stores.keys, &stores.queries }) {
        if (store->tensor()) { res[store->buffer_type()] += store->device_bytes(); }
    }
    return res;
}

uint32_t staged_memory::n_cells(int s, llama_seq_id seq_id) const {
    if (!stages[s]) {
        return 0;
    }
    return stages[s]->get_cells(seq_id).seq_pos_get(seq_id).size();
}

uint32_t staged_memory::stage_size(int s) const {
    return stages[s] ? stages[s]->get_size() : 0;
}

size_t staged_memory::cell_bytes(int s) const {
    if (!stages[s]) {
        return 0;
    }
    const auto & kv = *stages[s];
    size_t bytes = 0;
    for (const uint32_t il : kv.get_layer_ids()) {
        bytes += ggml_row_size(kv.type_k(), hparams.n_embd_k_gqa(il));
        if (!hparams.is_mla()) { bytes += ggml_row_size(kv.type_v(), hparams.n_embd_v_gqa(il)); } // latent keys are values as well
    }
    return bytes;
}

sequence & staged_memory::at(llama_seq_id seq_id) {
    return sequences[seq_id];
}

const sequence * staged_memory::find(llama_seq_id seq_id) const {
    const auto it = sequences.find(seq_id);
    return it == sequences.end() ? nullptr : &it->second;
}

bool staged_memory::any_lazy() const {
    return std::any_of(sequences.begin(), sequences.end(), [](const auto & s) { return s.second.lazy(); });
}

std::vector<llama_seq_id> staged_memory::waiting() const {
    std::vector<llama_seq_id> res;
    for (const auto & [id, s] : sequences) {
        if (!s.rows.empty()) { res.push_back(id); }
    }
    return res;
}

bool staged_memory::any_open(const llama_batch & batch) const {
    for (int32_t i = 0; i < batch.n_tokens && !sequences.empty(); ++i) {
        for (int32_t j = 0; j < batch.n_seq_id[i]; ++j) {
            const auto * s = find(batch.seq_id[i][j]);
            if (s && !s->images.empty() && !s->images.back().closed) {
                return true;
            }
        }
    }
    return false;
}

void staged_memory::close_images(const llama_batch & batch) {
    for (int32_t i = 0; i < batch.n_tokens && !sequences.empty(); ++i) {
        for (int32_t j = 0; j < batch.n_seq_id[i]; ++j) {
            const auto it = sequences.find(batch.seq_id[i][j]);
            if (it != sequences.end() && !it->second.images.empty()) {
                it->second.images.back().closed = true;
            }
        }
    }
}

//
// state: a tag, what the states in it are shaped by, the caches, then what the sequences carry
//

static constexpr uint32_t state_tag = 0x33564c48; // "HLV3"

std::vector<uint32_t> staged_memory::state_shape() const {
    std::vector<uint32_t> res(bounds.begin(), bounds.end());
    res.insert(res.end(), { n_hidden, n_key, stores.queries.width });
    return res;
}

void staged_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    const auto shape = state_shape();
    io.write(&state_tag, sizeof(state_tag));
    io.write(shape.data(), shape.size()*sizeof(uint32_t));
    each_stage([&](const llama_kv_cache & kv) { kv.state_write(io, seq_id, flags); });

    uint32_t n = 0;
    for (const auto & [id, s] : sequences) { n += seq_id < 0 || id == seq_id; }
    io.write(&n, sizeof(n));
    for (const auto & [id, s] : sequences) {
        if (seq_id < 0 || id == seq_id) {
            io.write(&id, sizeof(id));
            s.write(io);
        }
    }
}

void staged_memory::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    try {
        uint32_t tag;
        io.read(&tag, sizeof(tag));
        if (tag != state_tag) {
            throw std::runtime_error("halfv: the saved state was made without stages, or by another version");
        }
        std::vector<uint32_t> shape(state_shape().size());
        io.read(shape.data(), shape.size()*sizeof(uint32_t));
        if (shape != state_shape()) {
            throw std::runtime_error("halfv: the saved state was made with another model or other stages");
        }
        each_stage([&](llama_kv_cache & kv) {
            if (seq_id >= 0) { kv.seq_rm(seq_id, -1, -1); } // state_read leaves a sequence alone that was saved empty
            kv.state_read(io, seq_id, flags);
        });

        std::map<llama_seq_id, sequence> loaded;
        uint32_t n;
        io.read(&n, sizeof(n));
        if (n > (seq_id < 0 ? cparams.n_seq_max : 1)) {
            throw std::runtime_error("halfv: the saved state holds " + std::to_string(n) + " sequences");
        }
        for (uint32_t i = 0; i < n; ++i) {
            llama_seq_id id;
            io.read(&id, sizeof(id));
            if (seq_id >= 0) {
                id = seq_id;
            } else if (id < 0 || id >= (llama_seq_id) cparams.n_seq_max || loaded.count(id)) {
                throw std::runtime_error("halfv: the saved state names sequence " + std::to_string(id));
            }
            auto & s = loaded[id];
            s.read(io, { stages[0]->get_size(), cparams.n_ubatch, seq_pos_max(id), n_vocab }, stores);
        }
        if (seq_id < 0) {
            sequences.clear();
        } else {
            sequences.erase(seq_id);
        }
        sequences.merge(loaded);
        if (undo_bytes() > undo_limit) {
            if (undoes) {
                throw std::runtime_error("halfv: the saved state takes more to undo its questions than is left of " +
                        std::to_string(undo_limit >> 20) + " MiB (halfv_set_undo_bytes)");
            }
            change(seq_id, [](sequence & s) { s.turns.clear(); });
        }
        for (auto & [id, s] : sequences) { // prepared under other settings, perhaps
            if (prepares && (seq_id < 0 || id == seq_id)) { unprepare(id); }
        }
        keep_within_limit();
        alike = {};
        find_alike();
    } catch (...) {
        // one cache must not stay restored without the others
        each_stage([&](llama_kv_cache & kv) { kv.state_clear(seq_id); });
        if (seq_id < 0) { sequences.clear(); } else { sequences.erase(seq_id); }
        alike = {};
        find_alike();
        throw;
    }
}

//
// creation
//

llama_memory_i * create_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams) {
    reached_plain_cache();
    if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || !model.halfv_profile->exists()) {
        return nullptr;
    }
    const bool can_be_cut = cuts_of(model).refusal.empty();
    const auto profile = model.halfv_profile->get(model.hparams.n_layer(), can_be_cut);
    if (!profile || !can_be_cut) {
        return nullptr;
    }
    return new staged_memory(model, params, cparams, *profile);
}

} // namespace halfv

// of a token by all of its positions, as an M-RoPE picture shares the first; -1: none
int32_t llama_kv_cache::find_cell(llama_seq_id seq_id, const llama_pos * pos) const {
    const auto & cells = v_cells[seq_to_stream[seq_id]];
    const auto & held  = cells.seq_pos_get(seq_id);
    for (auto it = held.lower_bound({ pos[0], 0 }); it != held.end() && it->first == pos[0]; ++it) {
        const auto & ext = cells.ext_get(it->second);
        if (!has_cell_ext() || (ext.y == pos[1] && ext.x == pos[2])) {
            return it->second;
        }
    }
    return -1;
}
