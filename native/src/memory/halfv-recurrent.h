#pragma once

// Layers that carry one state per sequence instead of a cell per token. A stage has those of its recurrent layers, which
// take the tokens that reach the stage, in order and once.

#include "llama-graph.h"
#include "llama-io.h"
#include "llama-memory-recurrent.h"

#include <array>
#include <memory>
#include <vector>

struct llama_cparams;
struct llama_model;

namespace halfv {

class staged_context;

// of one stage
class recurrent_states {
public:
    recurrent_states(const llama_model & model, const llama_cparams & cparams, const llama_memory_i::layer_filter_cb & filter);

    llama_memory_recurrent memory; // has room for every state twice

    // A state is overwritten where it lies. From hold() on these sequences write theirs elsewhere, until let_go() or take_back().
    struct mark {
        std::vector<llama_memory_recurrent::mem_cell> cells;
        std::vector<uint32_t> rolled_back;
        uint32_t head, used;
    };
    mark hold(const std::vector<llama_seq_id> & seq_ids);
    void let_go(const std::vector<llama_seq_id> & seq_ids);
    void take_back(mark & before); // allocates nothing

    // a state that is there, or that there is none
    void write(llama_io_write_i & io, llama_seq_id seq_id) const;
    void read(llama_io_read_i & io, llama_seq_id seq_id, llama_pos last); // throws std::runtime_error on what cannot be

private:
    template <typename F> void each_tensor(F && f) const;

    const uint32_t n_seq_max;
    const uint32_t n_pos;
};

// What builders ask for, once for all layers. Its fields are those of the stage whose layers are being built.
class recurrent_input : public llm_graph_input_rs {
public:
    recurrent_input(const llm_graph_context & graph, const staged_context & staged);
    recurrent_input(const llm_graph_context & graph, const llama_memory_recurrent_context & states); // of a probe

    void enter(int32_t il);
    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

private:
    const staged_context * staged = nullptr;
    std::array<std::unique_ptr<llm_graph_input_rs>, 3> stages;
};

// what is built next
void enter_layer(const llm_graph_context & graph, int32_t il);

// null for another memory; attention's part is as for a memory without recurrent layers
llm_graph_input_mem_hybrid      * hybrid_inputs     (const llm_graph_context & graph);
llm_graph_input_mem_hybrid_k    * hybrid_inputs_k   (const llm_graph_context & graph);
llm_graph_input_mem_hybrid_iswa * hybrid_inputs_iswa(const llm_graph_context & graph);

} // namespace halfv
