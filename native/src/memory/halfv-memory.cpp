#include "halfv-memory.h"
#include "halfv-cut.h"
#include "halfv-profile.h"

#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

namespace halfv {

//
// staged_memory
//

// cells of a stage in a context of n_ctx tokens: as many as are asked for, or as the profile's shares come to
static uint32_t cells_of_stage(const halfv_profile & p, int s, uint32_t n_ctx, uint32_t wanted) {
    const double shares = std::ceil(n_ctx*(1.0 - p.visual_share*(1.0 - share_held(p, s))));
    const uint64_t n = wanted > 0 ? wanted : std::max<uint64_t>(1, shares);
    return std::min<uint64_t>(n_ctx, GGML_PAD(n, 256));
}

static std::vector<ggml_backend_dev_t> devices_of(const llama_model & model) {
    std::vector<ggml_backend_dev_t> res;
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) { res.push_back(model.dev_layer(il)); }
    return res;
}

// of what enters a layer, and of keys and queries like those of another
static state_stores stores_before(const llama_model & model, int32_t first, int32_t il) {
    const auto & hparams = model.hparams;
    return { state_store(hparams.n_embd*cuts_of(model).n_states, cuts_of(model).companion(first)), state_store(hparams.n_embd_k_gqa(il)),
             state_store(hparams.n_head(il)*hparams.n_embd_head_k(il)) };
}

staged_memory::staged_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                             const halfv_profile & profile) :
    bounds(bounds_of(profile, model.hparams.n_layer())),
    asked(layers_asked(model, profile)),
    profile(profile),
    devices(devices_of(model)),
    n_key(model.hparams.n_embd_k_gqa(asked[0])),
    n_vocab(model.vocab.n_tokens()),
    stores{{ stores_before(model, bounds[1], asked[0]), stores_before(model, std::max(bounds[1], bounds[2] - 1), asked[0]), // may_split()
             stores_before(model, bounds[3], asked[0]), stores_before(model, bounds[4], asked[0]), stores_before(model, bounds[5], asked[0]),
             stores_before(model, bounds[6], asked[0]) }},
    hparams(model.hparams),
    cparams(cparams),
    is_recurrent(bounds[n_stages]),
    is_attending(cuts_of(model).attends) {
    for (int32_t il = 0; il < bounds[n_stages]; ++il) { is_recurrent[il] = cuts_of(model).is_recurrent(il); }

    alike.fill(true);

    const auto wanted = model.halfv_profile->stage_cells();
    for (int s = 0; s < n_stages; ++s) {
        if (!has_stage(s)) {
            continue;
        }
        uint32_t size = cells_of_stage(profile, s, cparams.n_ctx_seq, s < (int) wanted.size() ? wanted[s] : 0);
        if (s > 0) { size = std::min(size, stages[s - 1]->get_size()); } // every token of it has been in the one before
        const std::string tag = "stage" + std::to_string(s + 1) + "_";
        const int32_t  first  = bounds[s], last = bounds[s + 1];

        stages[s] = std::make_unique<llama_kv_cache>(
                model, model.hparams, params.type_k, params.type_v, !cparams.flash_attn, cparams.offload_kqv, cparams.kv_unified,
                size, cparams.n_seq_max, 1, 0, LLAMA_SWA_TYPE_NONE, nullptr,
                [&](int32_t il) { return il >= first && il < last && attends(il); },
                [&](int32_t il) { return il >= first && il < last && !model.hparams.has_kv(il) ? layer_of_cache(model.hparams, il) : -1; }, nullptr, tag.c_str());

        if (std::find(is_recurrent.begin() + first, is_recurrent.begin() + last, true) != is_recurrent.begin() + last) {
            recurrent[s] = std::make_unique<recurrent_states>(model, cparams, [&](int32_t il) { return il >= first && il < last && recurs(il); });
        }
    }
    undoes = !recurs();
    reserve_states();
}

int staged_memory::store_of(int32_t boundary) const {
    int s = 1;
    while (s + 1 < n_stages && bounds[s] < boundary) { ++s; }
    return s - 1;
}

// Rows for the states of all tokens that may wait where stage I ends, and of those that go on where later ones do.
void staged_memory::reserve_states() {
    constexpr uint64_t most = 256ull << 20; // bytes of all
    const uint64_t n_cells = (uint64_t) stages[0]->get_size()*n_stream();
    std::array<uint64_t, n_stages - 1> n_rows = { n_cells };
    double bytes = 0;
    for (int s = 0; s + 1 < n_stages; ++s) {
        if (s > 0 && has_stage(s + 1)) { n_rows[s] = std::min<uint64_t>(n_cells, n_cells*share_updated(profile, s) + cparams.n_ubatch); } // and a question
        bytes += (double) n_rows[s]*(stores[s].hidden.width + stores[s].keys.width)*sizeof(float);
    }
    const double share = std::min(1.0, most/bytes);
    for (int s = 0; s + 1 < n_stages; ++s) {
        const uint64_t n_asking = s == 0 && profile.ivr_query == HALFV_QUERY_QUESTION ? std::max<uint64_t>(cparams.n_ubatch, n_rows[s]/8) : 0; // text that waits
        stores[s].reserve(devices[bounds[s + 1] - 1], n_rows[s]*share, 4*cparams.n_seq_max + n_asking, hparams.no_alloc);
    }
}

bool staged_memory::touches(const graph_pass & pass, int s) const {
    return has_stage(s) && bounds[s + 1] > pass.first && bounds[s] < pass.end(bounds[n_stages]);
}

bool staged_memory::recurs(const graph_pass & pass, int s) const {
    bool res = false;
    for (int32_t il = std::max(bounds[s], pass.first); recurrent[s] && il < std::min(bounds[s + 1], pass.end(bounds[n_stages])); ++il) {
        res = res || recurs(il);
    }
    return res;
}

void staged_memory::settle_for_good(llama_seq_id seq_id) {
    if (recurs()) { for_good[seq_id] = seq_pos_max(seq_id); }
}

std::vector<llama_seq_id> staged_memory::ids_of(llama_seq_id seq_id) const {
    std::vector<llama_seq_id> res(seq_id < 0 ? cparams.n_seq_max : 1, seq_id);
    for (size_t i = 0; i < res.size() && seq_id < 0; ++i) { res[i] = i; }
    return res;
}

void staged_memory::rewind(llama_seq_id seq_id, const graph_pass & pass) {
    for (int s = 0; s < n_stages; ++s) {
        if (touches(pass, s)) { stages[s]->seq_rm(seq_id, -1, -1); }
        if (recurs(pass, s)) { recurrent[s]->memory.seq_rm(seq_id, -1, -1); }
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
    for (const auto & [id, sequence] : sequences) { // one mask cannot say two things
        if (raised_cells(s, id) != raised_cells(s + 1, id)) { return false; }
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
    each_recurrent([&](recurrent_states & states) { states.memory.clear(data); });
    for_good.clear();
    sequences.clear();
    alike.fill(true);
}

// As upstream has it: a recurrent state goes as a whole, or loses the end of a draft where it was made to. What leaves from
// before its end stays in it.
bool staged_memory::can_remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    bool res = true;
    for (const auto id : ids_of(seq_id)) {
        llama_pos last = -1;
        each_recurrent([&](const recurrent_states & states) { last = std::max(last, states.memory.seq_pos_max(id)); });
        if (p0 <= 0 || p0 > last || (p1 >= 0 && p1 <= last)) {
            continue;
        }
        const auto settled = for_good.find(id);
        res = res && last - p0 < (llama_pos) cparams.n_rs_seq && (settled == for_good.end() || p0 > settled->second);
        each_recurrent([&](const recurrent_states & states) { res = res && states.memory.rs_idx[id] == 0; });
    }
    return res;
}

bool staged_memory::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (running) {
        return true; // a batch that failed is about to be undone as a whole
    }
    if (!can_remove(seq_id, p0, p1)) {
        return false;
    }
    each_recurrent([&](recurrent_states & states) {
        for (const auto id : ids_of(seq_id)) { states.memory.seq_rm(id, p0, p1); }
    });
    for (auto it = for_good.begin(); it != for_good.end();) {
        const bool gone = (seq_id < 0 || it->first == seq_id) && p0 <= 0 && (p1 < 0 || p1 > it->second);
        it = gone ? for_good.erase(it) : std::next(it);
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
    if (equal_seqs()) {
        if (p0 > std::max(0, seq_pos_min(seq_id_src)) || (p1 >= 0 && p1 <= last)) {
            LLAMA_LOG_ERROR("%s: HalfV: positions [%d, %d) of sequence %d cannot be copied: %s copy whole sequences\n",
                    __func__, p0, p1, seq_id_src, recurs() ? "recurrent layers" : "caches that are not unified");
            return;
        }
        p0 = p1 = -1;
    }
    seq_rm(seq_id_dst, p0, p1);
    each_stage([&](llama_kv_cache & kv) { kv.seq_cp(seq_id_src, seq_id_dst, p0, p1); });
    each_recurrent([&](recurrent_states & states) { states.memory.seq_cp(seq_id_src, seq_id_dst, p0, p1); });
    settle_for_good(seq_id_dst);
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
    each_recurrent([&](recurrent_states & states) { states.memory.seq_add(seq_id, p0, p1, shift); });
    settle_for_good(seq_id);
    change(seq_id, [&](sequence & s) { s.add(p0, p1, shift); });
    undo(seq_id, last);
}

void staged_memory::seq_div(llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) {
    each_stage([&](llama_kv_cache & kv) { kv.seq_div(seq_id, p0, p1, d); });
    each_recurrent([&](recurrent_states & states) { states.memory.seq_div(seq_id, p0, p1, d); });
    settle_for_good(seq_id);
    change(seq_id, [&](sequence & s) { s.divide(p0, p1, d); });
}

// every token goes through stage I, so its cache knows all positions
llama_pos staged_memory::seq_pos_min(llama_seq_id seq_id) const {
    return recurs() ? seq_pos_max(seq_id) : stages[0]->seq_pos_min(seq_id); // a recurrent state is of its last token
}

llama_pos staged_memory::seq_pos_max(llama_seq_id seq_id) const {
    const llama_pos last = stages[0]->seq_pos_max(seq_id);
    return recurrent[0] ? std::min(last, recurrent[0]->memory.seq_pos_max(seq_id)) : last;
}

std::map<ggml_backend_buffer_type_t, size_t> staged_memory::memory_breakdown() const {
    std::map<ggml_backend_buffer_type_t, size_t> res;
    each_stage([&](const llama_kv_cache & kv) {
        for (const auto & [buft, size] : kv.memory_breakdown()) { res[buft] += size; }
    });
    each_recurrent([&](const recurrent_states & states) {
        for (const auto & [buft, size] : states.memory.memory_breakdown()) { res[buft] += size; }
    });
    for (const auto & at : stores) {
        for (const auto * store : { &at.hidden, &at.keys, &at.queries }) {
            if (store->tensor()) { res[store->buffer_type()] += store->device_bytes(); }
        }
    }
    return res;
}

uint32_t staged_memory::n_cells(int s, llama_seq_id seq_id) const {
    if (!stages[s]) {
        return 0;
    }
    return stages[s]->get_cells(seq_id).seq_pos_get(seq_id).size();
}

// what a sequence's narrow pictures have among these cells
template <typename F>
static void each_narrow_cell(const llama_kv_cells & cells, llama_seq_id seq_id, const sequence & s, F && f) {
    const auto & held = cells.seq_pos_get(seq_id);
    for (size_t i = 0; i < s.images.size(); ++i) {
        const auto & positions = s.images[i].positions;
        if (!s.images[i].narrow || positions.empty()) {
            continue;
        }
        for (auto it = held.lower_bound({ positions.front(), 0 }); it != held.end() && it->first <= positions.back(); ++it) { f((int32_t) i, it->second); }
    }
}

std::vector<uint32_t> staged_memory::narrow_cells(int s, llama_seq_id seq_id) const {
    std::vector<uint32_t> res;
    const auto & cells = stages[s]->get_cells(seq_id);
    for (const auto & [id, sequence] : sequences) { each_narrow_cell(cells, id, sequence, [&](int32_t, uint32_t cell) { res.push_back(cell); }); }
    return res;
}

std::map<int32_t, uint64_t> staged_memory::cells_by_picture(int s, llama_seq_id seq_id) const {
    std::map<int32_t, uint64_t> res = { { -1, n_cells(s, seq_id) } };
    if (const auto * found = find(seq_id)) {
        each_narrow_cell(stages[s]->get_cells(seq_id), seq_id, *found, [&](int32_t image, uint32_t) { ++res[image]; --res[-1]; });
    }
    return res;
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
// creation
//

llama_memory_i * create_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                               const llama_memory_i::layer_filter_cb & recurrent) {
    reached_memory(model, recurrent);
    if (cparams.ctx_other && dynamic_cast<const staged_memory *>(llama_get_memory(cparams.ctx_other))) {
        throw std::runtime_error("halfv: " + model.arch_name() + " drafts from the KV cache of its target, which a profile splits: HALFV=off for both");
    }
    if (params.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT || !model.halfv_profile->exists()) {
        return nullptr;
    }
    const bool can_be_cut = cuts_of(model).refusal.empty();
    const auto given = model.halfv_profile->get(model.hparams.n_layer(), can_be_cut);
    if (!given || !can_be_cut) {
        return nullptr;
    }
    const auto profile = fitted(model, *given);
    if (const auto why = unfit(model, profile); !why.empty()) {
        throw std::runtime_error("halfv: " + why);
    }
    return new staged_memory(model, params, cparams, profile);
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
