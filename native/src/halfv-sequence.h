#pragma once

#include "llama.h"
#include "halfv.h"

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

class llama_io_write_i;
class llama_io_read_i;

namespace halfv {

// rows of equal width that are added at the end and referred to by slot
template <typename T>
struct slab {
    size_t width = 0;
    std::vector<T> data;

    uint32_t size() const { return width == 0 ? 0 : (uint32_t) (data.size()/width); }
    void     resize(uint32_t n) { data.resize(n*width); }
    uint32_t grow(uint32_t n) { const uint32_t first = size(); resize(first + n); return first; }

          T * at(uint32_t slot)       { return data.data() + slot*width; }
    const T * at(uint32_t slot) const { return data.data() + slot*width; }
};

// a token that has been through stage I, or through stage II when `deep`, and waits for what comes after
struct row {
    std::array<llama_pos, 4> pos;
    int32_t  image;      // its picture in sequence::images, -1: not visual
    int32_t  index;      // its place in that picture
    uint32_t hidden;     // slot of its state: the input of the next stage
    int32_t  key;        // slot of its key at the tapped layer, -1: nobody will ask
    int32_t  group;      // tokens of one non-causal batch share a group and travel together; -1: causal
    int32_t  batch_idx;  // place in the batch that is being decoded
    bool     output;     // that batch wants its output
    bool     deep;
};

struct image {
    llama_pos pos = 0;        // where it starts
    int32_t n = 0;            // visual tokens
    bool closed  = false;     // no more tokens will join
    bool covered = false;     // its coverage was chosen before the question
    bool settled = false;
    int32_t reason = HALFV_REASON_NONE;
    std::vector<int32_t> kept; // reached stage II
    std::vector<int32_t> deep; // reached stage III
};

// What one sequence carries between batches beside its KV.
struct sequence {
    std::vector<row>   rows;   // pending tokens, in prompt order
    slab<float>        hidden;
    slab<float>        keys;
    std::vector<float> query;  // of the last token at the layer before stage II, before RoPE

    // pruned tokens kept for top-up, as f16
    std::vector<row>   stored;
    slab<ggml_fp16_t>  stored_hidden;
    slab<ggml_fp16_t>  stored_keys;

    std::vector<image> images;
    bool new_question = false; // the next text is lazy even without a picture
    halfv_stats stats = {};    // counters; the rest is filled in when asked for

    bool lazy() const { return !rows.empty() || new_question; }

    // the same operations as llama_memory_i, on what is pending and stored
    void remove(llama_pos p0, llama_pos p1);
    void add(llama_pos p0, llama_pos p1, llama_pos shift);
    void divide(llama_pos p0, llama_pos p1, int d);
    sequence copy(llama_pos p0, llama_pos p1) const;

    // frees what no row refers to any more
    void compact();

    void write(llama_io_write_i & io) const;
    void read(llama_io_read_i & io, uint32_t max_rows); // throws std::runtime_error on what cannot be
};

// What a failed batch has to put back. While a batch only adds tokens, lists and slabs grow at their ends, and their
// lengths will do; keep_lists() comes before anything else changes.
struct sequence_mark {
    explicit sequence_mark(const sequence & s);
    void keep_lists(const sequence & s);
    void restore(sequence & s); // allocates nothing

    struct lists {
        std::vector<row> rows, stored;
        std::vector<image> images;
    };
    std::optional<lists> kept;

    size_t n_rows, n_images;
    int32_t n_last = 0; // of the last picture
    bool last_closed = false;
    uint32_t n_hidden, n_keys, n_stored_hidden, n_stored_keys;
    std::vector<float> query;
    bool new_question;
    halfv_stats stats;
};

} // namespace halfv
