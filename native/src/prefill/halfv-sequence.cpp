#include "halfv-sequence.h"

#include <algorithm>
#include <limits>
#include <tuple>

namespace halfv {

namespace {

struct range {
    llama_pos p0, p1;
    range(llama_pos a, llama_pos b) : p0(a < 0 ? 0 : a), p1(b < 0 ? std::numeric_limits<llama_pos>::max() : b) {}
    bool has(llama_pos p) const { return p >= p0 && p < p1; }
};

template <typename F>
void each_rows(sequence & s, F && f) {
    f(s.rows);
    for (auto & t : s.turns) {
        f(t.rows);
        f(t.recalled);
    }
}

template <typename F>
void each_position(sequence & s, F && f) {
    each_rows(s, [&](std::vector<row> & rows) {
        for (auto & r : rows) { f(r.pos[0]); }
    });
    for (auto & im : s.images) {
        for (auto & p : im.positions) { f(p); }
    }
    for (auto & t : s.turns) { f(t.end); }
}

// of a list that has one for each token, or none
template <typename T>
void keep_those_left(std::vector<T> & values, const std::vector<int32_t> & places) {
    for (size_t i = 0; i < values.size(); ++i) {
        if (places[i] >= 0) { values[places[i]] = values[i]; }
    }
    values.resize(values.empty() ? 0 : *std::max_element(places.begin(), places.end()) + 1);
}

void erase_value(std::vector<int32_t> & values, int32_t value) {
    values.erase(std::remove(values.begin(), values.end(), value), values.end());
}

} // namespace

bool prompt_order(const row & a, const row & b) {
    return std::tie(a.pos[0], a.image, a.index) < std::tie(b.pos[0], b.image, b.index);
}

row as_after_stage1(row r) {
    r.hidden    = r.first;
    r.key       = r.first_key;
    r.stage     = 1;
    return as_prepared(std::move(r));
}

row as_prepared(row r) {
    if (r.stage == 3) { // nobody will ask for its state again
        r.hidden = r.first;
        r.key    = r.first_key;
    }
    r.batch_idx = 0;
    r.output    = false;
    return r;
}

row token_of(row r) {
    r.first = r.hidden = r.first_key = r.key = r.query = {};
    return r;
}

std::vector<state_ref> refs_of(const std::vector<row> & rows, state_ref row::* which) {
    std::vector<state_ref> res;
    for (const auto & r : rows) { res.push_back(r.*which); }
    return res;
}

bool on_device(const std::vector<row> & rows) {
    return std::all_of(rows.begin(), rows.end(), [](const row & r) { return r.hidden.on_device(); });
}

int32_t next_group(const std::vector<row> & rows) {
    int32_t res = 0;
    for (const auto & r : rows) { res = std::max(res, r.group + 1); }
    return res;
}

void image::reset() {
    covered = settled = narrow = false;
    reason  = HALFV_REASON_NONE;
    reached = {};
    forget_counts();
}

void image::forget_counts() {
    stands_for = {};
    places.clear();
}

// Drops tokens by position. A picture is what is left of it, and goes with its last token; the others keep their order.
template <typename F>
void sequence::drop_if(F && gone) {
    const size_t n_rows = rows.size();
    const bool last_gone = n_rows > 0 && gone(rows.back().pos[0]);

    for (const auto & r : rows) {
        cut_prepared = cut_prepared || (r.image >= 0 && images[r.image].covered && gone(r.pos[0]));
    }
    for (auto & t : turns) {
        if (!t.rows.empty() && gone(t.rows.back().pos[0])) { t.asked = false; }
        if (std::any_of(t.rows.begin(), t.rows.end(), [&](const row & r) { return (r.stage > 1 || r.image >= 0) && gone(r.pos[0]); })) {
            for (auto & r : t.rows) { r = as_after_stage1(r); }
        }
    }

    std::vector<int32_t> renumber(images.size(), -1);
    std::vector<std::vector<int32_t>> places(images.size()); // of each token among those that are left
    std::vector<image> left;
    for (size_t i = 0; i < images.size(); ++i) {
        auto & im = images[i];
        int32_t n = 0;
        for (const auto p : im.positions) { places[i].push_back(gone(p) ? -1 : n++); }
        if (n == 0) {
            continue;
        }
        im.positions.erase(std::remove_if(im.positions.begin(), im.positions.end(), gone), im.positions.end());
        for (auto & chosen : im.reached) {
            for (auto & index : chosen) { index = places[i][index]; }
            erase_value(chosen, -1);
        }
        for (auto & counts : im.stands_for) { keep_those_left(counts, places[i]); }
        keep_those_left(im.places, places[i]);
        renumber[i] = left.size();
        left.push_back(std::move(im));
    }
    images = std::move(left);

    each_rows(*this, [&](std::vector<row> & list) {
        list.erase(std::remove_if(list.begin(), list.end(), [&](const row & r) {
            return gone(r.pos[0]) || (r.image >= 0 && places[r.image][r.index] < 0);
        }), list.end());
        for (auto & r : list) {
            if (r.image >= 0) {
                r.index = places[r.image][r.index];
                r.image = renumber[r.image];
            }
        }
    });

    if (last_gone) {
        query = {};
    }
    if (rows.size() < n_rows && !rows.empty() && rows.back().image == (int32_t) images.size() - 1 && !images.empty()) {
        images.back().closed = false; // nothing follows it any more
    }
}

void sequence::remove(llama_pos p0, llama_pos p1) {
    const range range(p0, p1);
    drop_if([&](llama_pos p) { return range.has(p); });
    for (auto & t : turns) {
        if (range.has(t.end)) { t.end = range.p0 - 1; }
    }
}

void sequence::add(llama_pos p0, llama_pos p1, llama_pos shift) {
    const range range(p0, p1);
    each_position(*this, [&](llama_pos & p) { if (range.has(p)) { p += shift; } });
    drop_if([](llama_pos p) { return p < 0; }); // has left the context
}

void sequence::divide(llama_pos p0, llama_pos p1, int d) {
    const range range(p0, p1);
    if (d > 1) {
        each_position(*this, [&](llama_pos & p) { if (range.has(p)) { p /= d; } });
        for (auto & im : images) { im.forget_counts(); } // nobody could say whose they are
        turns.clear();
        divided = true;
    }
}

sequence sequence::copy(llama_pos p0, llama_pos p1) const {
    sequence res = *this;
    if (p0 > 0)  { res.remove(0, p0); }
    if (p1 >= 0) { res.remove(p1, -1); }
    return res;
}

// tokens of another sequence join this one, between its own where their positions are
void sequence::append(const sequence & other) {
    const int32_t n_images = images.size();
    const auto moved = [&](row r) {
        if (r.image >= 0) { r.image += n_images; }
        return r;
    };
    images.insert(images.end(), other.images.begin(), other.images.end());
    for (const auto & r : other.rows) { rows.push_back(moved(r)); }
    for (auto t : other.turns) {
        for (auto * list : { &t.rows, &t.recalled }) {
            for (auto & r : *list) { r = moved(r); }
        }
        turns.push_back(std::move(t));
    }
    const bool last = rows.empty() || other.rows.empty() || &rows.back() == &*std::max_element(rows.begin(), rows.end(), prompt_order);
    query = last && !other.rows.empty() ? other.query : state_ref();
    new_question = new_question || other.new_question;
    divided      = divided || other.divided;
    std::stable_sort(rows.begin(),  rows.end(),  prompt_order);
    std::stable_sort(turns.begin(), turns.end(), [](const turn & a, const turn & b) { return a.end < b.end; });

    // pictures in prompt order as well
    std::vector<int32_t> order(images.size()), renumber(images.size());
    for (size_t i = 0; i < order.size(); ++i) { order[i] = i; }
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return images[a].positions[0] < images[b].positions[0]; });
    std::vector<image> sorted;
    for (size_t i = 0; i < order.size(); ++i) {
        renumber[order[i]] = i;
        sorted.push_back(std::move(images[order[i]]));
    }
    images = std::move(sorted);
    each_rows(*this, [&](std::vector<row> & list) {
        for (auto & r : list) {
            if (r.image >= 0) { r.image = renumber[r.image]; }
        }
    });
}

//
// undoing
//

// what was prepared waits from stage I on
void sequence::unprepare() {
    for (auto & r : rows) { r = as_after_stage1(r); }
    wait_again();
}

// pictures of tokens that wait are as these are
void sequence::wait_again() {
    const std::vector<image> before = images;
    for (const auto & r : rows) {
        if (r.image >= 0) { images[r.image].reset(); }
    }
    for (const auto & r : rows) {
        if (r.image >= 0 && r.stage > 1) {
            auto & im = images[r.image];
            const auto & was = before[r.image];
            im.covered = true;
            im.reason  = was.reason == HALFV_REASON_UNASKED ? HALFV_REASON_NONE : was.reason;
            im.narrow  = was.narrow;
            im.stands_for = was.stands_for;
            im.places     = was.places;
            im.reached[0].push_back(r.index);
            for (size_t i = 1; i < im.reached.size() && r.stage > 2; ++i) {
                const auto & list = was.reached[i]; // of stage III's, those that do not move were never there
                if (std::binary_search(list.begin(), list.end(), r.index)) { im.reached[i].push_back(r.index); }
            }
        }
    }
    if (!rows.empty() && rows.back().image >= 0 && rows.back().image == (int32_t) images.size() - 1) {
        images.back().closed = false;
    }
}

void sequence::forget_kept_preparations() {
    for (auto & t : turns) {
        for (auto & r : t.rows) { r = as_after_stage1(r); }
    }
}

// behind the last of these that has been through a stage, or where they begin
static llama_pos first_before_stage(const std::vector<row> & rows, int32_t stage) {
    const auto last = std::find_if(rows.rbegin(), rows.rend(), [&](const row & r) { return r.stage >= stage; });
    return last == rows.rend() ? rows.front().pos[0] : last->pos[0] + 1;
}

std::vector<leftover> sequence::undo(llama_pos last_before, llama_pos last, uint64_t adapters) {
    std::vector<leftover> res;
    if (divided) {
        return res;
    }
    if (cut_prepared && std::any_of(rows.begin(), rows.end(), [](const row & r) { return r.stage > 1; })) {
        res.push_back({ { rows.front().pos[0], rows.front().pos[0] }, {} });
        unprepare();
    }
    cut_prepared = false;

    const auto is_gone = [&](const turn & t) {
        return t.adapters == adapters && t.end >= last && (!t.asked || (t.by_next && t.end < last_before));
    };
    while (!turns.empty() && is_gone(turns.back())) {
        const turn t = std::move(turns.back());
        turns.pop_back();
        for (const auto & r : t.recalled) {
            for (auto & list : images[r.image].reached) { erase_value(list, r.index); }
        }
        res.push_back({ { last + 1, last + 1 }, t.recalled });
        if (!t.rows.empty()) {
            auto & left = res.back();
            left.from = { first_before_stage(t.rows, 2), first_before_stage(t.rows, 3) };
            const auto is_kept = [&](const row & r) { return std::binary_search(images[r.image].kept().begin(), images[r.image].kept().end(), r.index); };
            for (const auto & r : t.rows) { // those that the question added to a picture that was prepared
                if (r.image >= 0 && r.stage == 1 && r.pos[0] < left.from[0] && is_kept(r)) { left.rows.push_back(r); }
            }
        }
        std::vector<row> waiting = t.rows;
        for (const auto & r : rows) { waiting.push_back(as_after_stage1(r)); }
        rows = std::move(waiting);
        wait_again();
        query = {};
    }
    return res;
}

void sequence::each_stored(int32_t image, const std::function<void(const row &)> & f) const {
    std::vector<bool> kept(images[image].n());
    for (const auto i : images[image].kept()) { kept[i] = true; }
    for (const auto & t : turns) {
        for (const auto & r : t.rows) {
            if (r.image == image && !kept[r.index]) { f(r); }
        }
    }
}

uint32_t sequence::n_stored() const {
    uint32_t res = 0;
    for (size_t i = 0; i < images.size(); ++i) {
        each_stored(i, [&](const row &) { ++res; });
    }
    return res;
}

sequence_mark::sequence_mark(const sequence & s) :
    n_rows(s.rows.size()), n_turns(s.turns.size()), n_images(s.images.size()),
    query(s.query), new_question(s.new_question), stats(s.stats) {
    if (n_images > 0) {
        n_last      = s.images.back().positions.size();
        last_closed = s.images.back().closed;
    }
}

void sequence_mark::keep_lists(const sequence & s) {
    if (!kept) { kept = { s.rows, s.images }; }
}

void sequence_mark::restore(sequence & s) {
    if (kept) {
        s.rows   = std::move(kept->rows);
        s.images = std::move(kept->images);
    }
    s.rows  .resize(n_rows);
    s.turns .resize(n_turns);
    s.images.resize(n_images);
    if (n_images > 0) {
        s.images.back().positions.resize(n_last);
        s.images.back().closed = last_closed;
    }
    s.query        = std::move(query);
    s.new_question = new_question;
    s.stats        = stats;
}

} // namespace halfv
