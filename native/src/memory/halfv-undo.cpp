// What undoing a question that is gone does to the caches, and what it takes.

#include "halfv-memory.h"

#include <algorithm>
#include <limits>

namespace halfv {

// questions that are gone leave no trace: tokens that they chose leave the deeper stages, and wait again
void staged_memory::undo(llama_seq_id seq_id, llama_pos last_before) {
    const auto it = sequences.find(seq_id);
    if (it == sequences.end() || !undoes) {
        return;
    }
    for (const auto & left : it->second.undo(last_before, seq_pos_max(seq_id), adapters)) {
        alike = {};
        for (int s = 1; s < n_stages; ++s) {
            if (!stages[s]) {
                continue;
            }
            const int done = std::min(s, 2); // who has been in stage III has been in those behind it
            stages[s]->seq_rm(seq_id, left.from[done - 1], -1);
            for (const auto & r : left.rows) {
                const int32_t cell = r.stage > done ? -1 : stages[s]->find_cell(seq_id, r.pos.data());
                if (cell >= 0) { stages[s]->cells_of(seq_id).seq_rm(cell, seq_id); }
            }
        }
    }
}

uint64_t staged_memory::undo_bytes(bool prepared) const {
    std::vector<state_ref> hidden, keys, queries;
    for (const auto & [id, s] : sequences) {
        for (const auto & t : s.turns) {
            for (const auto & r : t.rows) {
                hidden.push_back(r.first);
                keys.push_back(r.first_key);
                queries.push_back(r.query);
                if (prepared) {
                    hidden.push_back(r.hidden);
                    keys.push_back(r.key);
                }
            }
        }
    }
    return state_store::bytes(hidden) + state_store::bytes(keys) + state_store::bytes(queries);
}

uint64_t staged_memory::undo_bytes(const row & r) const {
    return (stores[0].hidden.width + (r.first_key ? n_key : 0) + (r.query ? stores[0].queries.width : 0))*sizeof(float);
}

// What was prepared depends on all that stood before it then. Where that changes it is prepared again with the question,
// as in a fresh context.
void staged_memory::forget_preparation(llama_seq_id seq_id) {
    const auto it = sequences.find(seq_id);
    if (prepares && it != sequences.end()) {
        it->second.forget_preparation();
        it->second.forget_kept_preparations();
    }
}

void staged_memory::forget_preparations(llama_seq_id seq_id) {
    for (auto & [id, s] : sequences) {
        if (seq_id < 0 || id == seq_id) {
            forget_preparation(id);
            undo(id, seq_pos_max(id));
        }
    }
}

void staged_memory::keep_within_limit() {
    if (undo_bytes(true) > undo_limit) {
        for (auto & [id, s] : sequences) { s.forget_kept_preparations(); }
    }
}

void staged_memory::unprepare(llama_seq_id seq_id) {
    at(seq_id).forget_preparation();
    undo(seq_id, seq_pos_max(seq_id));
}

void staged_memory::use_adapters(uint64_t now) {
    adapters = now;
    for (auto & [id, s] : sequences) { undo(id, std::numeric_limits<llama_pos>::max()); }
}

void staged_memory::forget_questions() {
    for (auto & [id, s] : sequences) { s.turns.clear(); }
}

} // namespace halfv
