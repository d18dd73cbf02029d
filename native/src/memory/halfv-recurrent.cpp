#include "halfv-recurrent.h"
#include "halfv-cut.h"
#include "halfv-graph.h"

#include "llama-batch.h"
#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace halfv {

//
// memory
//

recurrent_states::recurrent_states(const llama_model & model, const llama_cparams & cparams, const llama_memory_i::layer_filter_cb & filter) :
    memory(model, GGML_TYPE_F32, GGML_TYPE_F32, cparams.offload_kqv, 2*cparams.n_seq_max, 2*cparams.n_seq_max, cparams.n_rs_seq, filter),
    n_seq_max(cparams.n_seq_max), n_pos(model.hparams.n_pos_per_embd()) {}

// A second sequence holds the state, so that it counts as shared, and who adds to a shared state gets a cell of its own.
recurrent_states::mark recurrent_states::hold(const std::vector<llama_seq_id> & seq_ids) {
    mark before = { memory.cells, memory.rs_idx, memory.head, memory.used };
    for (const auto id : seq_ids) { memory.seq_cp(id, id + n_seq_max, -1, -1); }
    return before;
}

void recurrent_states::let_go(const std::vector<llama_seq_id> & seq_ids) {
    for (const auto id : seq_ids) { memory.seq_rm(id + n_seq_max, -1, -1); }
}

void recurrent_states::take_back(mark & before) {
    memory.cells.swap(before.cells);
    memory.rs_idx.swap(before.rolled_back);
    memory.head = before.head;
    memory.used = before.used;
}

template <typename F>
void recurrent_states::each_tensor(F && f) const {
    for (const auto * tensors : { &memory.r_l, &memory.s_l, &memory.p_l }) {
        for (auto * t : *tensors) {
            if (t && ggml_nbytes(t) > 0) { f(t, ggml_row_size(t->type, t->ne[0])); }
        }
    }
}

void recurrent_states::write(llama_io_write_i & io, llama_seq_id seq_id) const {
    const int32_t tail = memory.cells[seq_id].tail;
    const llama_pos pos = tail < 0 ? -1 : memory.cells[tail].pos;
    io.write(&pos, sizeof(pos));
    if (pos < 0) {
        return;
    }
    const int32_t src = memory.cells[tail].src;
    const size_t  row = (size_t) memory.rs_idx[seq_id]*memory.size + (src >= 0 ? src : tail);
    each_tensor([&](ggml_tensor * t, size_t size) { io.write_tensor(t, row*size, size); });
}

void recurrent_states::read(llama_io_read_i & io, llama_seq_id seq_id, llama_pos last) {
    llama_pos pos;
    io.read(&pos, sizeof(pos));
    if (pos < -1 || pos > last) {
        throw std::runtime_error("halfv: a saved recurrent state has the position " + std::to_string(pos));
    }
    memory.seq_rm(seq_id, -1, -1);
    if (pos < 0) {
        return;
    }
    llama_batch_allocr balloc(n_pos);
    llama_ubatch ubatch = balloc.ubatch_reserve(1, 1);
    ubatch.n_seq_id[0] = 1;
    ubatch.seq_id[0]   = &seq_id;
    ubatch.pos[0]      = pos;
    if (!memory.find_slot(ubatch)) {
        throw std::runtime_error("halfv: no room for a saved recurrent state");
    }
    const size_t row = memory.cells[seq_id].tail;
    each_tensor([&](ggml_tensor * t, size_t size) { io.read_tensor(t, row*size, size); });
}

//
// graphs
//

static std::unique_ptr<llm_graph_input_rs> input_of(const llm_graph_context & graph, const llama_memory_recurrent_context & states) {
    auto res = std::make_unique<llm_graph_input_rs>(&states);
    const int64_t n = states.get_n_rs(), n_seqs = graph.ubatch.n_seqs;
    res->s_copy       = ggml_new_tensor_1d(graph.ctx0, GGML_TYPE_I32, n);
    res->s_copy_main  = ggml_view_1d(graph.ctx0, res->s_copy, n_seqs, 0);
    res->s_copy_extra = ggml_view_1d(graph.ctx0, res->s_copy, n - n_seqs, ggml_row_size(GGML_TYPE_I32, n_seqs));
    res->head = states.get_head();
    res->rs_z = states.get_rs_z();
    return res;
}

recurrent_input::recurrent_input(const llm_graph_context & graph, const staged_context & staged) :
    llm_graph_input_rs(nullptr), staged(&staged) {
    for (int s = 0; s < n_stages; ++s) {
        const auto * states = staged.recurrent(s);
        if (states) { stages[s] = input_of(graph, *states); }
        if (states && staged.recurs(s)) { // or else nobody runs those layers
            ggml_set_input(stages[s]->s_copy);
            ggml_set_name(stages[s]->s_copy, "rs_s_copy");
        }
    }
    enter(0);
}

recurrent_input::recurrent_input(const llm_graph_context & graph, const llama_memory_recurrent_context & states) :
    llm_graph_input_rs(nullptr) {
    static_cast<llm_graph_input_rs &>(*this) = *input_of(graph, states);
}

void recurrent_input::enter(int32_t il) {
    for (int s = 0; staged && s < n_stages; ++s) {
        if (stages[s] && il >= staged->bounds()[s] && il < staged->bounds()[s + 1]) {
            static_cast<llm_graph_input_rs &>(*this) = *stages[s];
        }
    }
}

void recurrent_input::set_input(const llama_ubatch *) {
    for (int s = 0; s < n_stages; ++s) {
        if (!stages[s] || !staged->recurs(s)) {
            continue;
        }
        std::vector<int32_t> from(stages[s]->s_copy->ne[0]);
        for (size_t i = 0; i < from.size(); ++i) { from[i] = stages[s]->mctx->s_copy(i); }
        ggml_backend_tensor_set(stages[s]->s_copy, from.data(), 0, ggml_nbytes(stages[s]->s_copy));
    }
}

bool recurrent_input::can_reuse(const llm_graph_params & params) {
    staged = as_staged(params.mctx);
    if (!staged) {
        return false;
    }
    for (int s = 0; s < n_stages; ++s) {
        if (!stages[s] || !staged->recurs(s)) {
            continue;
        }
        auto & stage = *stages[s];
        stage.mctx = staged->recurrent(s);
        if (stage.s_copy->ne[0] != stage.mctx->get_n_rs() || stage.s_copy_main->ne[0] != params.ubatch.n_seqs ||
            stage.head != stage.mctx->get_head() || stage.rs_z != stage.mctx->get_rs_z()) {
            return false;
        }
    }
    return true;
}

namespace {

class follows_layers {
public:
    virtual ~follows_layers() = default;
    virtual void enter(int32_t il) = 0;
};

template <typename base>
class hybrid_input : public base, public follows_layers {
public:
    template <typename attn>
    hybrid_input(const llm_graph_context & graph, std::unique_ptr<attn> attention, std::unique_ptr<llm_graph_input_rs> recurrent) :
        base(graph.cparams, std::move(attention), std::move(recurrent), nullptr) {}

    void set_input(const llama_ubatch * ubatch) override {
        this->inp_attn->set_input(ubatch);
        this->inp_rs->set_input(ubatch);
    }
    bool can_reuse(const llm_graph_params & params) override {
        return this->inp_attn->can_reuse(params) && this->inp_rs->can_reuse(params);
    }
    void enter(int32_t il) override { static_cast<recurrent_input &>(*this->inp_rs).enter(il); }
};

template <typename base, typename attn>
base * make_hybrid_input(const llm_graph_context & graph, attn * (llm_graph_context::*build_attention)() const) {
    const auto * staged = as_staged(graph.mctx);
    auto * probe = graph.halfv_pass.probe;
    if (!staged && !probe) {
        return nullptr;
    }
    std::unique_ptr<attn> attention((graph.*build_attention)());
    graph.res->inputs.back().release(); // no input by itself
    graph.res->inputs.pop_back();
    auto recurrent = staged ? std::make_unique<recurrent_input>(graph, *staged) : std::make_unique<recurrent_input>(graph, recurrent_of(*probe));
    return (base *) graph.res->add_input(std::make_unique<hybrid_input<base>>(graph, std::move(attention), std::move(recurrent)));
}

} // namespace

void enter_layer(const llm_graph_context & graph, int32_t il) {
    for (const auto & inp : graph.res->inputs) {
        if (auto * follows = dynamic_cast<follows_layers *>(inp.get())) { follows->enter(il); }
    }
}

llm_graph_input_mem_hybrid * hybrid_inputs(const llm_graph_context & graph) {
    return make_hybrid_input<llm_graph_input_mem_hybrid>(graph, &llm_graph_context::build_attn_inp_kv);
}

llm_graph_input_mem_hybrid_k * hybrid_inputs_k(const llm_graph_context & graph) {
    return make_hybrid_input<llm_graph_input_mem_hybrid_k>(graph, &llm_graph_context::build_attn_inp_k);
}

llm_graph_input_mem_hybrid_iswa * hybrid_inputs_iswa(const llm_graph_context & graph) {
    return make_hybrid_input<llm_graph_input_mem_hybrid_iswa>(graph, &llm_graph_context::build_attn_inp_kv_iswa);
}

} // namespace halfv
