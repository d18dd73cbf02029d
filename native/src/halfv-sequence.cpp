#include "halfv-sequence.h"

#include "llama-io.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <type_traits>

namespace halfv {

namespace {

struct range {
    llama_pos p0, p1;
    range(llama_pos a, llama_pos b) : p0(a < 0 ? 0 : a), p1(b < 0 ? std::numeric_limits<llama_pos>::max() : b) {}
    bool has(llama_pos p) const { return p >= p0 && p < p1; }
};

template <typename F>
void each_position(sequence & s, F && f) {
    for (auto * rows : { &s.rows, &s.stored }) {
        for (auto & r : *rows) { f(r.pos[0]); }
    }
    for (auto & im : s.images) { f(im.pos); }
}

template <typename T>
void gather(const slab<T> & from, slab<T> & to, uint32_t & slot) {
    const uint32_t copy = to.grow(1);
    std::copy_n(from.at(slot), from.width, to.at(copy));
    slot = copy;
}

template <typename T>
void gather_rows(std::vector<row> & rows, slab<T> & hidden, slab<T> & keys) {
    slab<T> h = { hidden.width, {} }, k = { keys.width, {} };
    for (auto & r : rows) {
        gather(hidden, h, r.hidden);
        if (r.key >= 0) {
            uint32_t slot = r.key;
            gather(keys, k, slot);
            r.key = slot;
        }
    }
    hidden = std::move(h);
    keys   = std::move(k);
}

} // namespace

// drops rows and pictures by position; a picture goes when its start does, the others keep their order
template <typename F>
static void drop_if(sequence & s, F && gone) {
    const auto row_gone = [&](const row & r) { return gone(r.pos[0]); };
    std::vector<int32_t> renumber(s.images.size(), -1);
    std::vector<image> images;
    for (size_t i = 0; i < s.images.size(); ++i) {
        if (!gone(s.images[i].pos)) {
            renumber[i] = images.size();
            images.push_back(std::move(s.images[i]));
        }
    }
    s.images = std::move(images);

    for (auto * rows : { &s.rows, &s.stored }) {
        rows->erase(std::remove_if(rows->begin(), rows->end(), row_gone), rows->end());
        for (auto & r : *rows) {
            if (r.image >= 0) { r.image = renumber[r.image]; }
        }
    }
    s.compact();
}

void sequence::remove(llama_pos p0, llama_pos p1) {
    const range range(p0, p1);
    drop_if(*this, [&](llama_pos p) { return range.has(p); });
}

void sequence::add(llama_pos p0, llama_pos p1, llama_pos shift) {
    const range range(p0, p1);
    each_position(*this, [&](llama_pos & p) { if (range.has(p)) { p += shift; } });
    drop_if(*this, [](llama_pos p) { return p < 0; }); // has left the context
}

void sequence::divide(llama_pos p0, llama_pos p1, int d) {
    const range range(p0, p1);
    if (d > 1) {
        each_position(*this, [&](llama_pos & p) { if (range.has(p)) { p /= d; } });
    }
}

sequence sequence::copy(llama_pos p0, llama_pos p1) const {
    sequence res = *this;
    if (p0 > 0) { res.remove(0, p0); }
    if (p1 >= 0) { res.remove(p1, -1); }
    return res;
}

void sequence::compact() {
    if (rows.empty()) {
        hidden.data = {};
        keys.data   = {};
    } else if (hidden.size() > 2*rows.size()) {
        gather_rows(rows, hidden, keys);
    }
    if (stored.empty()) {
        stored_hidden.data = {};
        stored_keys.data   = {};
    } else if (stored_hidden.size() > stored.size()) {
        gather_rows(stored, stored_hidden, stored_keys);
    }
}

//
// state: the fields in order, every count before its content
//

namespace {

template <typename T>
void put(llama_io_write_i & io, const T & value) {
    static_assert(std::is_trivially_copyable_v<T>);
    io.write(&value, sizeof(value));
}

template <typename T>
void put(llama_io_write_i & io, const std::vector<T> & values) {
    put(io, (uint64_t) values.size());
    if (!values.empty()) { io.write(values.data(), values.size()*sizeof(T)); }
}

template <typename T>
void take(llama_io_read_i & io, T & value) {
    io.read(&value, sizeof(value));
}

template <typename T>
void take(llama_io_read_i & io, std::vector<T> & values, uint64_t max) {
    uint64_t n;
    take(io, n);
    if (n > max) {
        throw std::runtime_error("halfv: the saved state lists " + std::to_string(n) + " entries where at most " + std::to_string(max) + " fit");
    }
    values.resize(n);
    if (n > 0) { io.read(values.data(), n*sizeof(T)); }
}

template <typename T>
void take_rows(llama_io_read_i & io, std::vector<row> & rows, slab<T> & hidden, slab<T> & keys, uint32_t max_rows, size_t n_images) {
    // a token holds at most a state and a key per stage it has been through, twice over before compact()
    const uint64_t max_slots = 4ull*max_rows;
    take(io, rows, max_rows);
    take(io, hidden.data, max_slots*hidden.width);
    take(io, keys.data,   max_slots*keys.width);
    for (const auto & r : rows) {
        if (r.hidden >= hidden.size() || r.key >= (int64_t) keys.size() || r.image >= (int64_t) n_images) {
            throw std::runtime_error("halfv: the saved state refers to a token that it does not hold");
        }
    }
}

} // namespace

void sequence::write(llama_io_write_i & io) const {
    put(io, (uint64_t) images.size());
    for (const auto & im : images) {
        put(io, im.pos);
        put(io, im.n);
        put(io, (uint32_t) ((im.closed ? 1 : 0) | (im.covered ? 2 : 0) | (im.settled ? 4 : 0)));
        put(io, im.reason);
        put(io, im.kept);
        put(io, im.deep);
    }
    put(io, rows);
    put(io, hidden.data);
    put(io, keys.data);
    put(io, stored);
    put(io, stored_hidden.data);
    put(io, stored_keys.data);
    put(io, query);
    put(io, (uint32_t) new_question);
    put(io, stats);
}

void sequence::read(llama_io_read_i & io, uint32_t max_rows) {
    uint64_t n_images;
    take(io, n_images);
    if (n_images > max_rows) {
        throw std::runtime_error("halfv: the saved state lists " + std::to_string(n_images) + " pictures");
    }
    images.resize(n_images);
    for (auto & im : images) {
        uint32_t flags;
        take(io, im.pos);
        take(io, im.n);
        take(io, flags);
        take(io, im.reason);
        take(io, im.kept, max_rows);
        take(io, im.deep, max_rows);
        im.closed  = flags & 1;
        im.covered = flags & 2;
        im.settled = flags & 4;
    }
    take_rows(io, rows,   hidden,        keys,        max_rows, images.size());
    take_rows(io, stored, stored_hidden, stored_keys, max_rows, images.size());
    take(io, query, 1u << 24);
    uint32_t asked;
    take(io, asked);
    new_question = asked != 0;
    take(io, stats);
}

sequence_mark::sequence_mark(const sequence & s) :
    n_rows(s.rows.size()), n_images(s.images.size()),
    n_hidden(s.hidden.size()), n_keys(s.keys.size()),
    n_stored_hidden(s.stored_hidden.size()), n_stored_keys(s.stored_keys.size()),
    query(s.query), new_question(s.new_question), stats(s.stats) {
    if (n_images > 0) {
        n_last      = s.images.back().n;
        last_closed = s.images.back().closed;
    }
}

void sequence_mark::keep_lists(const sequence & s) {
    if (!kept) { kept = { s.rows, s.stored, s.images }; }
}

void sequence_mark::restore(sequence & s) {
    if (kept) {
        s.rows   = std::move(kept->rows);
        s.stored = std::move(kept->stored);
        s.images = std::move(kept->images);
    }
    s.rows  .resize(n_rows);
    s.images.resize(n_images);
    if (n_images > 0) {
        s.images.back().n      = n_last;
        s.images.back().closed = last_closed;
    }
    s.query        = std::move(query);
    s.new_question = new_question;
    s.stats        = stats;
    s.hidden       .resize(n_hidden);
    s.keys         .resize(n_keys);
    s.stored_hidden.resize(n_stored_hidden);
    s.stored_keys  .resize(n_stored_keys);
}

} // namespace halfv
