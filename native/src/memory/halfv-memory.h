#pragma once

#include "halfv-pass.h"
#include "halfv-profile.h"
#include "halfv-recurrent.h"
#include "halfv-sequence.h"

#include "llama-batch.h"
#include "llama-kv-cache.h"
#include "llama-memory.h"

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

struct llama_cparams;
struct llama_model;

namespace halfv {

class staged_context;

// what a graph takes its states from, or gives them to
struct graph_end {
    bool stored = false;       // rows of a store on a device
    input_part companion = {}; // what goes along with them
    bool operator==(const graph_end & o) const { return stored == o.stored && companion == o.companion; }
};

struct graph_ends {
    graph_end in = {}, out = {};
    bool operator==(const graph_ends & o) const { return in == o.in && out == o.out; }
};

// one graph to run: what goes in, and through which layers
struct step {
    llama_ubatch ubatch;
    graph_pass   pass = {};
    std::optional<bool> causal = {}; // not given: as the context is set
    std::vector<uint32_t> cells = {}; // of stage II, where its tokens are already

    // A row for each token: what it takes, what it gives; none where nobody will ask. Where an end is stored, a device reads or
    // writes them; else what it takes is in the ubatch, and what it gives is brought down.
    struct io {
        graph_ends ends;
        std::vector<state_ref> in, out, keys;
        std::vector<state_ref> queries; // of each token, or of the last alone
    } io = {};
};

// A KV cache for each stage behind one memory, split by layer: each holds only the tokens that reached its stage. With recurrent layers
// each stage has their states beside its cache.
// Also owns what sequences carry between batches, so that every seq_* operation reaches pending tokens too.
class staged_memory : public llama_memory_i {
public:
    staged_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                  const halfv_profile & profile);

    llama_memory_context_ptr init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full() override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    std::unique_ptr<staged_context> init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch); // one that can be taken back
    std::unique_ptr<staged_context> init_steps(std::vector<step> steps); // a batch made by hand
    std::unique_ptr<staged_context> init_full(const graph_pass & pass, graph_ends ends = {});

    bool get_can_shift() const override;

    void clear(bool data) override;

    bool seq_rm  (llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add (llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override;
    void seq_div (llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d) override;

    llama_pos seq_pos_min(llama_seq_id seq_id) const override;
    llama_pos seq_pos_max(llama_seq_id seq_id) const override;

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    //
    // staged_memory specific API
    //

    const stage_bounds bounds;
    const std::array<int32_t, n_stages - 1> asked; // layers_asked()

    bool has_stage(int s) const { return bounds[s] < bounds[s + 1]; }
    bool touches(const graph_pass & pass, int s) const;

    // Of recurrent layers there is one state per sequence: tokens come to them in order, and none can be taken out again.
    bool recurs() const { return std::any_of(recurrent.begin(), recurrent.end(), [](const auto & states) { return states != nullptr; }); }
    bool recurs(const graph_pass & pass, int s) const;
    bool recurs(int32_t il) const { return is_recurrent[il]; }
    bool attends(int32_t il) const { return is_attending[il]; }
    void settle_for_good(llama_seq_id seq_id); // no draft's end reaches back behind what is there

    // whether a graph has as many tokens of each of its sequences, which follow each other
    bool equal_seqs() const { return n_stream() > 1 || recurs(); }

    // Tokens of one graph: no more than n_ubatch, and so few that the masks of the stages that it reaches together take no more
    // than stage I's when it is full, which is what buffers are reserved for. One mask serves all until tokens are pruned.
    uint32_t ubatch_size(const graph_pass & pass, uint32_t n_new) const;

    // forget the cells that hold a sequence in these layers; they are given out again in the same order
    void rewind(llama_seq_id seq_id, const graph_pass & pass);

    uint32_t n_stream() const { return stages[0]->get_n_stream(); }
    uint32_t n_cells(int s, llama_seq_id seq_id) const; // in use by a sequence
    std::vector<uint32_t> narrow_cells(int s, llama_seq_id seq_id) const; // of narrow pictures, of all sequences whose cells are there
    struct raised_cell {
        uint32_t cell;
        float    by;
        bool operator==(const raised_cell & o) const { return cell == o.cell && by == o.by; }
    };
    std::vector<raised_cell> raised_cells(int s, llama_seq_id seq_id) const; // whose tokens stand for others, and get more attention
    std::map<int32_t, uint64_t> cells_by_picture(int s, llama_seq_id seq_id) const; // of a sequence; -1: of no narrow one
    uint32_t stage_size(int s) const; // cells of one stream
    size_t   cell_bytes(int s) const;

    sequence & at(llama_seq_id seq_id); // made if it is not there
    const sequence * find(llama_seq_id seq_id) const;
    bool any_lazy() const;
    std::vector<llama_seq_id> waiting() const; // sequences with pending tokens
    bool any_open(const llama_batch & batch) const; // a picture that the next batch may go on with
    void close_images(const llama_batch & batch); // something else follows in its sequences

    halfv_profile profile;

    const std::vector<ggml_backend_dev_t> devices; // of the layers

    const uint32_t n_key; // floats per token: keys at a tapped layer
    const int32_t  n_vocab;

    stores_of_stages stores; // go after everything that holds their rows

    // what a graph takes its rows from, and what it gives them to
    const state_stores & before(const graph_pass & pass) const { return stores[store_of(pass.first)]; }
    const state_stores & after (const graph_pass & pass) const { return stores[store_of(pass.end(bounds[n_stages]))]; }
    state_stores & after(const graph_pass & pass) { return stores[store_of(pass.end(bounds[n_stages]))]; }

    // Whether a question that is removed is undone. If not, pictures stay as it left them.
    bool undoes = true;
    uint64_t undo_limit = 512ull << 20; // of all sequences, in bytes
    uint64_t undo_bytes(bool prepared = false) const; // that states kept for it take now, those that sequences share counted
                                                      // once; with those that only spare preparing again
    void     keep_within_limit(); // the latter give way
    uint64_t undo_bytes(const row & r) const;
    void     unprepare(llama_seq_id seq_id); // a prepared picture waits from stage I on

    // Whether every question prepares its pictures first. They stay so when it is removed.
    bool prepares = false;
    void forget_preparations(llama_seq_id seq_id = -1); // what is chosen changes, in one sequence or all
    void forget_questions();     // nothing is undone from here on

    // Adapters and control vectors in force. Questions that are gone already, and were answered under these, are undone now.
    void use_adapters(uint64_t adapters);
    static constexpr uint64_t changing = ~0ull; // until the next batch, so that nothing is undone
    uint64_t adapters = 0; // 0: none

    // What a batch puts into cells, and what it does to its sequences, is taken back unless commit() is called.
    // New tokens only ever go to empty cells, so it notes which: it costs what the batch costs, whatever the context holds.
    class transaction {
    public:
        transaction(staged_memory & memory, const std::vector<llama_seq_id> & seq_ids);
        ~transaction();
        void commit();

    private:
        friend class staged_memory;
        friend class staged_context;

        staged_memory & memory;
        transaction * const outer;
        std::array<llama_kv_cache::slot_info_vec_t, n_stages> filled;
        std::array<std::vector<uint32_t>, n_stages> heads;
        std::array<std::optional<recurrent_states::mark>, n_stages> states;
        std::map<llama_seq_id, llama_pos> for_good;
        std::map<llama_seq_id, sequence_mark> marks; // of sequences that existed
        std::vector<llama_seq_id> seq_ids;
        std::array<bool, n_stages - 1> alike;
        bool open = true;
    };

    // While it lives a token has no cell in stage I, and what graphs put into cells counts for nothing. Then all is as before.
    class rehearsal {
    public:
        rehearsal(staged_memory & memory, llama_seq_id seq_id, const llama_pos * pos);
        ~rehearsal();

    private:
        llama_kv_cells & cells;
        const int32_t cell; // -1: none
        llama_kv_cells before; // of this cell
        std::optional<transaction> inside;
    };

    // where the last n tokens that came into a stage are, in a transaction of one sequence
    std::vector<uint32_t> last_cells(int s, size_t n) const;

    // before a batch changes what a sequence carries in other ways than adding tokens
    void keep_lists(llama_seq_id seq_id);

private:
    friend class staged_context;

    int  store_of(int32_t boundary) const; // of the stage that ends there, or next
    void reserve_states();
    std::vector<uint32_t> state_shape() const;
    void undo(llama_seq_id seq_id, llama_pos last_before);
    void forget_preparation(llama_seq_id seq_id);
    std::unique_ptr<staged_context> init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool one_by_one, bool embd_all);
    bool leaves_out_caches(llama_state_seq_flags flags) const;
    bool can_remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;
    std::vector<llama_seq_id> ids_of(llama_seq_id seq_id) const; // of all when negative
    void warn_of_little_room(int s, const std::vector<llama_ubatch> & ubatches, bool fits);

    bool one_mask(const graph_pass & pass) const; // whether the stages that it reaches are alike
    bool equal_cells(int s) const;
    void find_alike(); // stages that were not may have become so

    const llama_hparams & hparams;
    const llama_cparams & cparams; // of the context that owns this memory
    std::array<std::unique_ptr<llama_kv_cache>, n_stages> stages;
    std::array<std::unique_ptr<recurrent_states>, n_stages> recurrent; // null: no layer of the stage is
    std::vector<bool> is_recurrent, is_attending; // layer by layer
    std::map<llama_seq_id, llama_pos> for_good;
    std::map<llama_seq_id, sequence> sequences;
    transaction * running = nullptr;
    std::array<bool, n_stages - 1> alike; // stages s and s + 1 hold the same tokens in the same cells
    std::array<bool, n_stages> warned = {}; // of little room in a stage

    // what `f` does to the pending tokens of a sequence, of all when negative, and what follows from it
    template <typename F> void change(llama_seq_id seq_id, F && f) {
        for (auto it = sequences.begin(); it != sequences.end();) {
            const bool wanted = seq_id < 0 || it->first == seq_id;
            if (wanted) { f(it->second); }
            it = wanted && it->second.empty() ? sequences.erase(it) : std::next(it);
        }
    }

    template <typename F> void each_stage(F && f) {
        for (auto & stage : stages) { if (stage) { f(*stage); } }
    }
    template <typename F> void each_stage(F && f) const {
        for (const auto & stage : stages) { if (stage) { f(*stage); } }
    }
    template <typename F> void each_recurrent(F && f) const {
        for (const auto & states : recurrent) { if (states) { f(*states); } }
    }
};

class staged_context : public llama_memory_context_i {
public:
    explicit staged_context(llama_memory_status status) : status(status) {}
    staged_context(staged_memory & memory, std::vector<step> steps);
    ~staged_context() override;

    bool next()  override;
    bool apply() override;
    const llama_ubatch & get_ubatch() const override;
    llama_memory_status  get_status() const override { return status; }

    // the current step's
    const graph_pass & pass() const { return steps.empty() ? full : steps[i_cur].pass; }
    const struct step::io & io() const { return steps[i_cur].io; }
    const state_stores & stores_before() const { return memory->before(pass()); }
    const state_stores & stores_after()  const { return memory->after(pass()); }
    ggml_backend_dev_t device(int32_t il) const { return memory->devices[il]; }
    ggml_backend_dev_t device_before() const; // where the states are that a graph takes
    graph_ends ends() const { return steps.empty() ? full_ends : io().ends; }
    std::optional<bool> causal() const { return steps.empty() ? std::nullopt : steps[i_cur].causal; }

    // null where the current step does not reach the stage
    const llama_kv_cache_context * stage(int s) const;
    const llama_kv_cells & cells(int s, llama_seq_id seq_id) const { return memory->stages[s]->get_cells(seq_id); }

    // null where the stage has no recurrent layers; of some use only where the current step runs them
    const llama_memory_recurrent_context * recurrent(int s) const;
    bool recurs(int s) const { return memory->recurs(pass(), s); }

    const stage_bounds & bounds() const { return memory->bounds; }

    // whether the stages that the current step reaches need only one mask; when buffers are reserved, that is the largest
    bool one_mask()   const { return steps.empty() || alike[i_cur]; }
    bool is_reserve() const { return steps.empty(); }
    const halfv_profile & profile() const { return memory->profile; }
    const sequence * of(llama_seq_id seq_id) const { return memory->find(seq_id); }
    std::vector<uint32_t> narrow_cells(int s, llama_seq_id seq_id) const { return memory->narrow_cells(s, seq_id); } // where it has cells
    std::vector<staged_memory::raised_cell> raised_cells(int s, llama_seq_id seq_id) const { return memory->raised_cells(s, seq_id); }

    // kept open until the last step is done
    std::unique_ptr<staged_memory::transaction> transaction;
    std::function<void()> on_done;

private:
    friend class staged_memory;

    bool touches(int s) const { return stages[s] && memory->touches(pass(), s); }

    staged_memory * memory = nullptr;
    std::array<llama_memory_context_ptr, n_stages> stages;
    std::array<std::unique_ptr<llama_memory_recurrent_context>, n_stages> states, all_states; // of the steps, of no step
    std::vector<step> steps;
    std::vector<bool> alike; // the stages that each step reaches, after it
    size_t i_cur = 0;
    graph_pass full = {}; // of a context without steps
    graph_ends full_ends;
    llama_memory_status status;
};

// the memory of a context whose model has a profile; null where it runs unpruned
llama_memory_i * create_memory(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams,
                               const llama_memory_i::layer_filter_cb & recurrent = nullptr); // which layers are

} // namespace halfv
