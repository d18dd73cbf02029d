// What sequences carry, in a saved state: field by field, every count before its content. Whoever wrote a state, reading
// it takes no more memory than it has bytes, and gives a sequence that the rest of the code can have made, or throws.

#include "halfv-memory.h"

#include "llama-cparams.h"
#include "llama-io.h"

#include <algorithm>
#include <cstring>
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace halfv {

namespace {

template <typename T>
void put(llama_io_write_i & io, T value) {
    static_assert(std::is_arithmetic_v<T>);
    io.write(&value, sizeof(value));
}

template <typename T>
void put(llama_io_write_i & io, const std::vector<T> & values) {
    put(io, (uint32_t) values.size());
    if (!values.empty()) { io.write(values.data(), values.size()*sizeof(T)); }
}

template <typename T>
T take(llama_io_read_i & io) {
    static_assert(std::is_arithmetic_v<T>);
    T value;
    io.read(&value, sizeof(value));
    return value;
}

void require(bool holds, const char * what) {
    if (!holds) {
        throw std::runtime_error(std::string("halfv: the saved state is broken: ") + what);
    }
}

uint32_t take_count(llama_io_read_i & io, uint32_t max, const char * what) {
    const auto n = take<uint32_t>(io);
    if (n > max) {
        throw std::runtime_error("halfv: the saved state lists " + std::to_string(n) + " " + what + " where at most " + std::to_string(max) + " fit");
    }
    return n;
}

// in pieces, so that a count without content takes no memory
template <typename T>
std::vector<T> take_values(llama_io_read_i & io, uint32_t max, const char * what) {
    constexpr uint32_t piece = 4096;
    const uint32_t n = take_count(io, max, what);
    std::vector<T> res;
    while (res.size() < n) {
        const size_t first = res.size(), count = std::min<size_t>(piece, n - first);
        res.resize(first + count);
        io.read(res.data() + first, count*sizeof(T));
    }
    return res;
}

//
// pictures
//

void write_image(llama_io_write_i & io, const image & im) {
    const bool counts = !im.places.empty();
    put(io, (uint32_t) ((im.closed ? 1 : 0) | (im.covered ? 2 : 0) | (im.settled ? 4 : 0) | (im.narrow ? 8 : 0) | (counts ? 16 : 0)));
    put(io, im.reason);
    put(io, im.positions);
    for (const auto & list : im.reached) { put(io, list); }
    if (counts) {
        for (const auto & list : im.stands_for) { put(io, list); }
        for (const auto & place : im.places) {
            for (const auto p : place) { put(io, p); }
        }
    }
}

void check_chosen(const std::vector<int32_t> & chosen, int32_t n) {
    for (size_t i = 0; i < chosen.size(); ++i) {
        require(chosen[i] < n && (i == 0 ? chosen[i] >= 0 : chosen[i] > chosen[i - 1]), "the tokens kept of a picture are not in order");
    }
}

image read_image(llama_io_read_i & io, const state_limits & limits) {
    image im;
    const auto flags = take<uint32_t>(io);
    require(flags < 32, "unknown flags of a picture");
    im.closed    = flags & 1;
    im.covered   = flags & 2;
    im.settled   = flags & 4;
    im.narrow    = flags & 8;
    im.reason    = take<int32_t>(io);
    im.positions = take_values<llama_pos>(io, limits.max_rows, "tokens of a picture");
    for (auto & list : im.reached) { list = take_values<int32_t>(io, im.n(), "tokens kept"); }
    if (flags & 16) {
        for (auto & list : im.stands_for) {
            list = take_values<uint32_t>(io, im.n(), "counts of what tokens stand for");
            require(list.empty() || list.size() == im.positions.size(), "tokens without a count of what they stand for");
        }
        im.places.resize(im.n());
        for (auto & place : im.places) {
            for (auto & p : place) { p = take<llama_pos>(io); }
        }
        require(!im.stands_for[0].empty() && (im.covered || im.settled), "counts of what tokens of a picture stand for that waits");
    }
    require(im.n() > 0, "a picture without tokens");
    require(im.reason >= HALFV_REASON_NONE && im.reason <= HALFV_REASON_UNASKED, "unknown reason");
    require(im.covered || im.settled || std::all_of(im.reached.begin(), im.reached.end(), [](const auto & list) { return list.empty(); }),
            "tokens kept of a picture that waits");
    for (const auto p : im.positions) { require(p >= 0 && p <= limits.last, "a picture's token has a position that is not held"); }
    for (const auto & list : im.reached) { check_chosen(list, im.n()); }
    return im;
}

//
// rows
//

void write_token(llama_io_write_i & io, const row & r) {
    for (const auto p : r.pos) { put(io, p); }
    put(io, r.image);
    put(io, r.index);
    put(io, r.token);
}

row read_token(llama_io_read_i & io, const std::vector<image> & images, const state_limits & limits) {
    row r = {};
    for (auto & p : r.pos) { p = take<llama_pos>(io); }
    r.image = take<int32_t>(io);
    r.index = take<int32_t>(io);
    r.token = take<llama_token>(io);
    require(r.pos[0] >= 0 && r.pos[0] <= limits.last, "a token has a position that is not held");
    require(r.image >= -1 && r.image < (int32_t) images.size(), "a token of no picture");
    if (r.image >= 0) {
        const auto & positions = images[r.image].positions;
        require(r.index >= 0 && r.index < (int32_t) positions.size() && positions[r.index] == r.pos[0], "a token is not where its picture has it");
        require(r.token == LLAMA_TOKEN_NULL, "a visual token that is text");
    } else {
        require(r.index == -1, "text with a place in a picture");
        require(r.token >= LLAMA_TOKEN_NULL && r.token < limits.n_vocab, "a token that is not in the vocabulary");
    }
    return r;
}

enum : uint32_t { HAS_FIRST_KEY = 1, HAS_KEY = 2, HAS_QUERY = 4 };

// what a row refers to: keys and states that only one between stages II and III needs follow those of stage I
template <typename F>
void each_ref(const row & r, F && f) {
    f(r.first);
    if (r.first_key) { f(r.first_key); }
    if (r.stage == 2) {
        f(r.hidden);
        if (r.key) { f(r.key); }
    }
    if (r.query) { f(r.query); }
}

void write_rows(llama_io_write_i & io, const std::vector<row> & rows) {
    std::vector<float> values;
    put(io, (uint32_t) rows.size());
    for (const auto & r : rows) {
        write_token(io, r);
        put(io, r.stage);
        put(io, r.group);
        put(io, (uint32_t) ((r.first_key ? (uint32_t) HAS_FIRST_KEY : 0) | (r.key ? (uint32_t) HAS_KEY : 0) | (r.query ? (uint32_t) HAS_QUERY : 0)));
        each_ref(r, [&](const state_ref & ref) {
            ref.read(values);
            io.write(values.data(), values.size()*sizeof(float));
        });
    }
}

std::vector<row> read_rows(llama_io_read_i & io, const std::vector<image> & images, bool settled, stores_of_stages & stores, const state_limits & limits) {
    std::vector<float> values;
    const auto take_state = [&](state_store & store) {
        values.resize(store.width);
        io.read(values.data(), values.size()*sizeof(float));
        return store.add(values.data());
    };
    std::vector<row> rows;
    uint32_t n_group = 0;
    for (uint32_t n = take_count(io, limits.max_rows, "tokens"); rows.size() < n;) {
        row r = read_token(io, images, limits);
        r.stage = take<int32_t>(io);
        r.group = take<int32_t>(io);
        const auto has = take<uint32_t>(io);
        const bool visual = r.image >= 0;
        require(r.stage >= 1 && r.stage <= 3 && (r.stage == 1 || !settled), "unknown stage");
        require(!visual || images[r.image].settled == settled, "a token waits although its picture does not");
        require(!visual || r.stage == 1 || images[r.image].covered, "a token has gone on although its picture waits");
        require((has & HAS_FIRST_KEY) || !visual, "a visual token without a key");
        require((has & HAS_KEY) || !visual,       "a visual token without a key");
        require(r.group >= -1 && r.group < 1 << 30, "unknown group");
        if (!rows.empty()) {
            require(prompt_order(rows.back(), r), "tokens are not in order");
        }
        n_group = r.group >= 0 && !rows.empty() && rows.back().group == r.group ? n_group + 1 : 1;
        require(r.group < 0 || n_group <= limits.n_ubatch, "a group of tokens is longer than a micro-batch");

        r.first = r.hidden = take_state(stores[0].hidden);
        if (has & HAS_FIRST_KEY) { r.first_key = r.key = take_state(stores[0].keys); }
        if (r.stage == 2) {
            r.hidden = take_state(stores[1].hidden);
            r.key    = has & HAS_KEY ? take_state(stores[1].keys) : state_ref();
        }
        if (has & HAS_QUERY) { r.query = take_state(stores[0].queries); }
        rows.push_back(r);
    }
    return rows;
}

} // namespace

void sequence::write(llama_io_write_i & io) const {
    put(io, (uint32_t) images.size());
    for (const auto & im : images) { write_image(io, im); }

    write_rows(io, rows);
    std::vector<float> values;
    if (!rows.empty() && query) { query.read(values); }
    put(io, values);

    put(io, (uint32_t) turns.size());
    for (const auto & t : turns) {
        std::vector<row> waiting; // what was prepared is prepared again when this question is removed
        for (const auto & r : t.rows) { waiting.push_back(as_after_stage1(r)); }
        write_rows(io, waiting);
        put(io, (uint32_t) t.recalled.size());
        for (const auto & r : t.recalled) { write_token(io, r); }
        put(io, t.end);
        put(io, (uint32_t) ((t.asked ? 1 : 0) | (t.by_next ? 2 : 0)));
        put(io, t.adapters);
    }
    put(io, (uint32_t) ((new_question ? 1 : 0) | (divided ? 2 : 0)));

    put(io, stats.flops_dense);
    put(io, stats.flops_spent);
    for (const auto us : { stats.us_stage1, stats.us_select, stats.us_stage2, stats.us_frozen, stats.us_stage3 }) { put(io, us); }
}

void sequence::read(llama_io_read_i & io, const state_limits & limits, stores_of_stages & stores) {
    for (uint32_t n = take_count(io, limits.max_rows, "pictures"); images.size() < n;) {
        images.push_back(read_image(io, limits));
    }
    rows = read_rows(io, images, false, stores, limits);
    auto & queries = stores[0].queries;
    const auto values = take_values<float>(io, queries.width, "values of a query");
    require(values.empty() || (values.size() == queries.width && !rows.empty()), "a query of another model");
    if (!values.empty()) { query = queries.add(values.data()); }

    for (uint32_t n = take_count(io, limits.max_rows, "questions"); turns.size() < n;) {
        turn t;
        t.rows = read_rows(io, images, true, stores, limits);
        for (uint32_t n_recalled = take_count(io, limits.max_rows, "tokens"); t.recalled.size() < n_recalled;) {
            t.recalled.push_back(read_token(io, images, limits));
            require(t.recalled.back().image >= 0 && images[t.recalled.back().image].settled, "text that was brought back");
        }
        t.end = take<llama_pos>(io);
        const auto flags = take<uint32_t>(io);
        require(t.end >= -1 && t.end <= limits.last && flags < 4, "unknown flags of a question");
        t.asked   = flags & 1;
        t.by_next = flags & 2;
        t.adapters = take<uint64_t>(io);
        turns.push_back(std::move(t));
    }
    const auto flags = take<uint32_t>(io);
    require(flags < 4, "unknown flags of a sequence");
    new_question = flags & 1;
    divided      = flags & 2;

    // a token waits, or one question decided over it
    std::vector<std::vector<bool>> seen;
    for (const auto & im : images) { seen.emplace_back(im.n()); }
    const auto see = [&](const std::vector<row> & list) {
        for (const auto & r : list) {
            if (r.image >= 0) {
                require(!seen[r.image][r.index], "a token twice");
                seen[r.image][r.index] = true;
            }
        }
    };
    see(rows);
    for (const auto & t : turns) { see(t.rows); }

    stats.flops_dense = take<double>(io);
    stats.flops_spent = take<double>(io);
    require(stats.flops_dense >= 0 && stats.flops_spent >= 0 && std::isfinite(stats.flops_dense) && std::isfinite(stats.flops_spent), "FLOPs that cannot be");
    for (auto * us : { &stats.us_stage1, &stats.us_select, &stats.us_stage2, &stats.us_frozen, &stats.us_stage3 }) {
        *us = take<int64_t>(io);
        require(*us >= 0 && *us < int64_t(1) << 60, "times that cannot be");
    }
}

//
// state: a tag, what the states in it are shaped by, the caches, then what the sequences carry
//

static constexpr uint32_t state_tag = 0x35564c48; // "HLV5"

std::vector<uint32_t> staged_memory::state_shape() const {
    std::vector<uint32_t> res(bounds.begin(), bounds.end());
    res.insert(res.end(), { stores[0].hidden.width, n_key, stores[0].queries.width });
    const bool few = profile.heads_keep < 1.0f; // keys and values of pictures are those of some heads
    uint32_t keep = 0;
    if (few) { memcpy(&keep, &profile.heads_keep, sizeof(keep)); }
    res.insert(res.end(), { few ? profile.heads_layer : 0, keep, (uint32_t) profile.ivr_query }); // who asks: text has queries, or has none
    if (recurs()) { res.insert(res.end(), { hparams.n_embd_r(), hparams.n_embd_s(), hparams.ple_conv_state() }); }
    return res;
}

// what llama-server calls a checkpoint: the caches hold what they held then, and are cut off where it was
bool staged_memory::leaves_out_caches(llama_state_seq_flags flags) const {
    return recurs() && (flags & LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
}

void staged_memory::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    const auto shape = state_shape();
    io.write(&state_tag, sizeof(state_tag));
    io.write(shape.data(), shape.size()*sizeof(uint32_t));
    if (!leaves_out_caches(flags)) {
        each_stage([&](const llama_kv_cache & kv) { kv.state_write(io, seq_id, flags); });
    }
    each_recurrent([&](const recurrent_states & states) {
        for (const auto id : ids_of(seq_id)) { states.write(io, id); }
    });

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
            if (leaves_out_caches(flags)) {
                return;
            }
            if (seq_id >= 0) { kv.seq_rm(seq_id, -1, -1); } // state_read leaves a sequence alone that was saved empty
            kv.state_read(io, seq_id, flags);
        });
        each_recurrent([&](recurrent_states & states) {
            if (seq_id < 0) { states.memory.clear(true); }
            for (const auto id : ids_of(seq_id)) { states.read(io, id, stages[0]->seq_pos_max(id)); }
        });
        for (const auto id : ids_of(seq_id)) { settle_for_good(id); }

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
        for (const auto & [id, s] : sequences) { // what has gone on since then waits again
            for (int stage = 1; stage < n_stages && leaves_out_caches(flags) && !s.rows.empty(); ++stage) {
                if (stages[stage] && (seq_id < 0 || id == seq_id)) { stages[stage]->seq_rm(id, s.rows.front().pos[0], -1); }
            }
        }
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
        each_recurrent([&](recurrent_states & states) {
            for (const auto id : ids_of(seq_id)) { states.memory.seq_rm(id, -1, -1); }
        });
        if (seq_id < 0) { sequences.clear(); } else { sequences.erase(seq_id); }
        alike = {};
        find_alike();
        throw;
    }
}

} // namespace halfv
