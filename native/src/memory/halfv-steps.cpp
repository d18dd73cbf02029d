// One batch in steps: which cells it takes, and how what it changed is taken back.

#include "halfv-memory.h"

#include "llama-impl.h"

#include <algorithm>

namespace halfv {

//
// steps of a batch
//

llama_memory_context_ptr staged_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) {
    return init_batch(balloc, n_ubatch, false, embd_all);
}

// Sequences that share a graph change places among the recurrent states, which is not taken back: then each has its own.
std::unique_ptr<staged_context> staged_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch) {
    return init_batch(balloc, n_ubatch, recurs(), false);
}

std::unique_ptr<staged_context> staged_memory::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool one_by_one, bool embd_all) {
    const uint32_t n_draft = cparams.n_rs_seq > 0 ? cparams.n_rs_seq + 1 : 0; // stays in one piece, so that its end can be taken back
    balloc.split_reset();
    n_ubatch = std::min(n_ubatch, ubatch_size({}, balloc.get_n_tokens()));

    std::vector<step> steps;
    while (true) {
        auto ubatch = one_by_one || (recurs() && embd_all) ? balloc.split_seq(n_ubatch) :
                      equal_seqs() ? balloc.split_equal(n_ubatch, n_stream() > 1, recurs() ? n_draft : 0) : balloc.split_simple(n_ubatch);
        if (ubatch.n_tokens == 0) {
            break;
        }
        steps.push_back({ std::move(ubatch) });
    }
    if (balloc.get_n_used() < balloc.get_n_tokens()) {
        return std::make_unique<staged_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    }
    return init_steps(std::move(steps));
}

std::unique_ptr<staged_context> staged_memory::init_steps(std::vector<step> steps) {
    return std::make_unique<staged_context>(*this, std::move(steps));
}

llama_memory_context_ptr staged_memory::init_full() {
    return init_full(graph_pass{});
}

std::unique_ptr<staged_context> staged_memory::init_full(const graph_pass & pass, graph_ends ends) {
    auto res = std::make_unique<staged_context>(*this, std::vector<step>{});
    res->full = pass;
    res->full_ends = ends;
    for (int s = 0; s < n_stages; ++s) {
        if (stages[s]) { res->stages[s] = stages[s]->init_full(); }
    }
    return res;
}

llama_memory_context_ptr staged_memory::init_update(llama_context * lctx, bool optimize) {
    auto res = std::make_unique<staged_context>(*this, std::vector<step>{});
    res->status = LLAMA_MEMORY_STATUS_NO_UPDATE;
    for (int s = 0; s < n_stages; ++s) {
        if (!stages[s]) {
            continue;
        }
        auto update = stages[s]->init_update(lctx, optimize);
        if (update->get_status() != LLAMA_MEMORY_STATUS_NO_UPDATE) {
            res->status = llama_memory_status_combine(res->status, update->get_status());
            res->stages[s] = std::move(update);
        }
    }
    return res;
}

//
// staged_memory::transaction
//

staged_memory::transaction::transaction(staged_memory & memory, const std::vector<llama_seq_id> & seq_ids) :
    memory(memory), outer(memory.running), for_good(memory.for_good), seq_ids(seq_ids), alike(memory.alike) {
    for (int s = 0; s < n_stages; ++s) {
        if (memory.stages[s])    { heads[s]  = memory.stages[s]->get_heads(); }
        if (memory.recurrent[s]) { states[s] = memory.recurrent[s]->hold(seq_ids); }
    }
    for (const auto id : seq_ids) {
        if (const auto * s = memory.find(id)) {
            marks.emplace(id, *s);
        }
    }
    memory.running = this;
}

staged_memory::transaction::~transaction() {
    if (!open) {
        return;
    }
    memory.running = outer;
    memory.alike   = alike;
    for (int s = 0; s < n_stages; ++s) {
        if (memory.stages[s])    { memory.stages[s]->take_back(filled[s], heads[s]); }
        if (memory.recurrent[s]) { memory.recurrent[s]->take_back(*states[s]); }
    }
    memory.for_good.swap(for_good);
    for (const auto id : seq_ids) {
        if (const auto mark = marks.find(id); mark != marks.end()) {
            mark->second.restore(memory.sequences[id]);
        } else {
            memory.sequences.erase(id);
        }
    }
}

void staged_memory::transaction::commit() {
    memory.running = outer;
    memory.each_recurrent([&](recurrent_states & states) { states.let_go(seq_ids); });
    memory.find_alike(); // a picture that was kept whole, for one
    open = false;
}

staged_memory::rehearsal::rehearsal(staged_memory & memory, llama_seq_id seq_id, const llama_pos * pos) :
    cells(memory.stages[0]->cells_of(seq_id)), cell(memory.stages[0]->find_cell(seq_id, pos)) {
    if (cell >= 0) {
        before = cells.cp(cell, 1);
        cells.seq_rm(cell, seq_id);
    }
    inside.emplace(memory, std::vector<llama_seq_id>{});
}

staged_memory::rehearsal::~rehearsal() {
    inside.reset();
    if (cell >= 0) { cells.set(cell, before); }
}

std::vector<uint32_t> staged_memory::last_cells(int s, size_t n) const {
    std::vector<uint32_t> res(n);
    const auto & filled = running->filled[s];
    for (auto slot = filled.rbegin(); n > 0; ++slot) {
        const auto & idxs = slot->idxs[0];
        n -= idxs.size();
        std::copy(idxs.begin(), idxs.end(), res.begin() + n);
    }
    return res;
}

void staged_memory::keep_lists(llama_seq_id seq_id) {
    if (!running) {
        return;
    }
    const auto mark = running->marks.find(seq_id);
    const auto s    = sequences.find(seq_id);
    if (mark != running->marks.end() && s != sequences.end()) {
        mark->second.keep_lists(s->second);
    }
}

// Text may fill a stage that is smaller than the context long before the context: the log says so once before it does,
// and whenever a batch was refused for it.
void staged_memory::warn_of_little_room(int s, const std::vector<llama_ubatch> & ubatches, bool fits) {
    const uint32_t size = stage_size(s);
    if (size == stage_size(0)) {
        return;
    }
    if (!fits) {
        LLAMA_LOG_WARN("HalfV: stage %d is full: it has cells for %u tokens, text and kept visual ones, with halfv.visual_share = %.3g\n",
                s + 1, size, profile.visual_share);
        return;
    }
    uint32_t used = 0;
    for (uint32_t stream = 0; stream < n_stream(); ++stream) { used = std::max(used, stages[s]->get_cells(stream).get_used()); }
    for (const auto & ubatch : ubatches) { used += ubatch.n_tokens; }
    if (used > size - size/8 && !warned[s]) {
        warned[s] = true;
        LLAMA_LOG_WARN("HalfV: stage %d is nearly full, with %u of its %u cells in use: halfv.visual_share = %.3g sets the rest of the context's %u "
                "aside for visual tokens, and a batch that does not fit is refused\n", s + 1, used, size, profile.visual_share, stage_size(0));
    }
}

//
// staged_context
//

// stage II's, of tokens that have been there; all of one sequence
static llama_kv_cache::slot_info slot_of(const llama_kv_cache & kv, const step & step) {
    const auto stream = kv.get_stream(step.ubatch.seq_id_unq[0]);
    llama_kv_cache::slot_info res = { stream, stream, { (llama_seq_id) stream }, { step.cells } };
    res.filled = true;
    return res;
}

staged_context::staged_context(staged_memory & memory, std::vector<step> steps_in) :
    memory(&memory), steps(std::move(steps_in)), status(LLAMA_MEMORY_STATUS_SUCCESS) {
    for (int s = 0; s < n_stages; ++s) {
        if (!memory.recurrent[s]) {
            continue;
        }
        auto & states_of_stage = memory.recurrent[s]->memory;
        all_states[s] = std::make_unique<llama_memory_recurrent_context>(&states_of_stage);
        std::vector<llama_ubatch> ubatches;
        for (const auto & step : steps) {
            if (memory.recurs(step.pass, s)) { ubatches.push_back(step.ubatch); }
        }
        if (!ubatches.empty() && !states_of_stage.prepare(ubatches)) {
            status = LLAMA_MEMORY_STATUS_FAILED_PREPARE;
            return;
        }
        states[s] = std::make_unique<llama_memory_recurrent_context>(&states_of_stage, std::move(ubatches));
    }
    std::array<llama_kv_cache::slot_info_vec_t, n_stages> slots;
    for (int s = 0; s < n_stages && !steps.empty(); ++s) {
        const auto is_there = [s](const step & step) { return s == 1 && !step.cells.empty(); };
        std::vector<llama_ubatch> ubatches, added;
        for (const auto & step : steps) {
            if (memory.touches(step.pass, s)) {
                ubatches.push_back(step.ubatch);
                if (!is_there(step)) { added.push_back(step.ubatch); }
            }
        }
        if (ubatches.empty()) {
            continue;
        }
        const auto found = added.empty() ? llama_kv_cache::slot_info_vec_t() : memory.stages[s]->prepare(added);
        memory.warn_of_little_room(s, added, found.size() == added.size());
        if (found.size() < added.size()) {
            status = LLAMA_MEMORY_STATUS_FAILED_PREPARE;
            return;
        }
        if (memory.running) {
            auto & filled = memory.running->filled[s];
            filled.insert(filled.end(), found.begin(), found.end());
        }
        auto next = found.begin();
        for (const auto & step : steps) {
            if (memory.touches(step.pass, s)) { slots[s].push_back(is_there(step) ? slot_of(*memory.stages[s], step) : *next++); }
        }
        stages[s] = std::make_unique<llama_kv_cache_context>(memory.stages[s].get(), slots[s], std::move(ubatches));
    }

    // a step that gives two stages the same tokens in the same cells leaves them alike if they were so before
    std::array<size_t, n_stages> next = {};
    for (const auto & step : steps) {
        const auto touches = [&](int s) { return memory.touches(step.pass, s); };
        for (int s = 0; s + 1 < n_stages; ++s) {
            if (memory.has_stage(s + 1) && (touches(s) || touches(s + 1))) {
                memory.alike[s] = memory.alike[s] && touches(s) && touches(s + 1) && slots[s][next[s]].idxs == slots[s + 1][next[s + 1]].idxs;
            }
        }
        for (int s = 0; s < n_stages; ++s) { next[s] += touches(s); }
        alike.push_back(memory.one_mask(step.pass));
    }
}

staged_context::~staged_context() {
    if (transaction && i_cur >= steps.size()) {
        transaction->commit();
        if (on_done) { on_done(); }
    }
}

bool staged_context::next() {
    for (int s = 0; s < n_stages; ++s) {
        if (touches(s)) { stages[s]->next(); }
        if (recurs(s))  { states[s]->next(); }
    }
    return ++i_cur < steps.size();
}

bool staged_context::apply() {
    bool res = true;
    for (int s = 0; s < n_stages; ++s) {
        if (touches(s)) { res = stages[s]->apply() && res; }
        if (recurs(s) && !steps.empty()) { res = states[s]->apply() && res; }
    }
    return res;
}

const llama_ubatch & staged_context::get_ubatch() const {
    return steps[i_cur].ubatch;
}

const llama_memory_recurrent_context * staged_context::recurrent(int s) const {
    return !steps.empty() && recurs(s) ? states[s].get() : all_states[s].get();
}

ggml_backend_dev_t staged_context::device_before() const {
    return ends().in.stored ? ggml_backend_buft_get_device(stores_before().hidden.buffer_type()) : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

const llama_kv_cache_context * staged_context::stage(int s) const {
    return touches(s) ? static_cast<const llama_kv_cache_context *>(stages[s].get()) : nullptr;
}

} // namespace halfv

// also restores where the search for empty cells starts, so that a batch that is tried again gets the same ones
void llama_kv_cache::take_back(const slot_info_vec_t & filled, const std::vector<uint32_t> & heads) {
    for (const auto & slot : filled) {
        for (size_t s = 0; s < slot.n_stream(); ++s) {
            auto & cells = v_cells[slot.strm[s]];
            for (const uint32_t i : slot.idxs[s]) {
                if (!cells.is_empty(i)) { cells.rm(i); }
            }
        }
    }
    v_heads = heads;
}
