#pragma once

#include "halfv.h"
#include "halfv-states.h"
#include "llama.h"

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

class llama_io_write_i;
class llama_io_read_i;

namespace halfv {

// A token that has been through stage I, and whose way through the later stages depends on a question.
struct row {
    std::array<llama_pos, 4> pos;
    int32_t  image;      // its picture in sequence::images, -1: not visual
    int32_t  index;      // its place in that picture
    state_ref first;     // its state after stage I
    state_ref first_key; // its key at the layer that is asked before stage II; none: nobody will ask
    state_ref hidden;    // its state now: the input of the next stage
    state_ref key;       // its key at the layer that is asked next, or none
    state_ref query;     // of text, its query at the layer that is asked before stage II, where it chooses; or where a chooser is given it
    int32_t  stage;      // the last stage it has been through: 1, 2, or 3 when it is done
    llama_token token;   // LLAMA_TOKEN_NULL: not text
    int32_t  group;      // tokens of one non-causal batch share a group and travel together; -1: causal
    int32_t  batch_idx;  // place in the batch that is being decoded
    bool     output;     // that batch wants its output
    bool     narrow = false; // takes only some channels of feed-forward networks
    int32_t  cell = -1;  // in stage II's cache, while the last layer of that stage still has to see it
};

bool prompt_order(const row & a, const row & b);

row as_after_stage1(row r);
row as_prepared(row r); // as it waits for a question, without what the batch at hand wants of it
row token_of(row r);    // without states

bool on_device(const std::vector<row> & rows); // their states

std::vector<state_ref> refs_of(const std::vector<row> & rows, state_ref row::* which);

// for the tokens of a non-causal batch that join these
int32_t next_group(const std::vector<row> & rows);

struct image {
    std::vector<llama_pos> positions; // of its visual tokens
    bool closed  = false;     // no more tokens will join
    bool covered = false;     // its coverage was chosen before the question
    bool settled = false;
    bool narrow  = false;     // its tokens take only some channels, heads or neighbours
    int32_t reason = HALFV_REASON_NONE;
    std::array<std::vector<int32_t>, n_stages - 1> reached; // stage II and each behind it

    // Where attention is to know: how many tokens each stands for in these stages, 0 or 1 where for itself alone, and the rows and
    // columns by which tokens are told apart that share a position. Empty: all stand for themselves.
    std::array<std::vector<uint32_t>, n_stages - 1> stands_for;
    std::vector<std::array<llama_pos, 2>> places;

    int32_t n() const { return (int32_t) positions.size(); }
    const std::vector<int32_t> & kept() const { return reached[0]; } // stage II
    void reset(); // waits for a question again
    void forget_counts(); // of what tokens stand for
};

// What it takes to undo a question: tokens from the first picture that it pruned to its own last one, as they left
// stage I, or as they waited once they were prepared. When the question is removed they wait again, as if it had never
// been asked.
struct turn {
    std::vector<row> rows;     // in prompt order
    std::vector<row> recalled; // tokens of earlier pictures that it brought into the deeper stages
    llama_pos end = 0;         // where its last token is: nothing beyond, nothing has followed
    bool asked = true;         // by its last token, which is still there
    bool by_next = false;      // what followed could not wait with it: gone with that as well
    uint64_t adapters = 0;     // in force then: nothing is undone under others
};

// what a question that is gone leaves behind in the caches of stages II and III
struct leftover {
    std::array<llama_pos, 2> from; // everything from here on
    std::vector<row> rows;         // and these, where they have not been before the question
};

// what a saved state may hold; whoever wrote it
struct state_limits {
    uint32_t  max_rows;  // cells of stage I
    uint32_t  n_ubatch;  // a non-causal group is one micro-batch
    llama_pos last;      // position in stage I's cache
    int32_t   n_vocab;
};

// What one sequence carries between batches beside its KV.
struct sequence {
    std::vector<row>   rows;   // tokens that wait, and those done whose choice may still be undone, in prompt order
    state_ref          query;  // of the last token at the layer before stage II, before RoPE; none: it was removed

    std::vector<turn>  turns;  // questions that can be undone, in order
    std::vector<image> images;
    bool new_question = false; // the next text is lazy even without a picture
    bool divided      = false; // positions were divided, and no longer tell tokens apart: nothing can be undone
    halfv_stats stats = halfv_stats(); // counters; the rest is filled in when asked for

    bool lazy()  const { return !rows.empty() || new_question; }
    bool empty() const { return !lazy() && images.empty() && turns.empty(); }

    // the same operations as llama_memory_i
    void remove(llama_pos p0, llama_pos p1);
    void add(llama_pos p0, llama_pos p1, llama_pos shift);
    void divide(llama_pos p0, llama_pos p1, int d);
    sequence copy(llama_pos p0, llama_pos p1) const;
    void append(const sequence & other);

    // Undoes questions that are gone and were followed by nothing that is left. `last` is the last position held, now and
    // before tokens were removed.
    std::vector<leftover> undo(llama_pos last_before, llama_pos last, uint64_t adapters);

    // pruned tokens whose states are kept, of one picture; of all
    void each_stored(int32_t image, const std::function<void(const row &)> & f) const;
    uint32_t n_stored() const;

    void forget_preparation() { cut_prepared = true; } // of what waits, with the next undo()
    void forget_kept_preparations();                   // of what would wait again

    void write(llama_io_write_i & io) const;
    void read(llama_io_read_i & io, const state_limits & limits, stores_of_stages & stores); // throws std::runtime_error on what cannot be

private:
    template <typename F> void drop_if(F && gone);
    void unprepare();
    void wait_again();
    bool cut_prepared = false; // a prepared picture has lost tokens, or cannot stay as it is
};

// What a failed batch has to put back. While a batch only adds tokens, lists grow at their ends, and their lengths will do;
// keep_lists() comes before anything else changes.
struct sequence_mark {
    explicit sequence_mark(const sequence & s);
    void keep_lists(const sequence & s);
    void restore(sequence & s); // allocates nothing

    struct lists {
        std::vector<row> rows;
        std::vector<image> images;
    };
    std::optional<lists> kept;

    size_t n_rows, n_turns, n_images;
    size_t n_last = 0; // tokens of the last picture
    bool last_closed = false;
    state_ref query;
    bool new_question;
    halfv_stats stats;
};

} // namespace halfv
