// How one graph of a few layers is fed, run and read.

#include "halfv-cut.h"
#include "halfv-prefill.h"
#include "halfv-selection.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <cstring>
#include <stdexcept>

namespace halfv {

void prefill::reserve(uint32_t n_tokens) {
    if (ctx.model.hparams.no_alloc) {
        return;
    }
    const auto & b = memory.bounds;
    std::vector<graph_pass> passes = { { b[0], b[1], INT32_MAX, memory.asked[0], wants_rotated(), asks_with_all() } };
    for (int s = 1; s < n_stages && memory.has_stage(s); ++s) {
        const bool goes_on = s + 1 < n_stages && memory.has_stage(s + 1);
        passes.push_back({ b[s] - (s == 2 && may_split()), goes_on ? b[s + 1] : INT32_MAX, INT32_MAX, goes_on ? memory.asked[s] : -1, true });
    }
    std::vector<std::pair<graph_pass, graph_ends>> all;
    for (const auto & pass : passes) {
        const bool takes = pass.first > 0, gives = pass.last < b[n_stages];
        const input_part in  = takes ? memory.before(pass).hidden.companion : input_part();
        const input_part out = gives ? memory.after(pass).hidden.companion  : input_part();
        for (const bool in_stored : { false, takes && memory.before(pass).on_device() }) {
            for (const bool out_stored : { false, gives && memory.after(pass).on_device() }) {
                const std::pair<graph_pass, graph_ends> one = { pass, { { in_stored, in }, { out_stored, out } } };
                if (pass.first < pass.last && std::find(all.begin(), all.end(), one) == all.end()) { all.push_back(one); }
            }
        }
    }
    reserve_choice();
    for (const auto & [pass, ends] : all) {
        const auto mctx = memory.init_full(pass, ends);
        if (!ctx.graph_reserve(n_tokens, ctx.cparams.n_seq_max, 1, mctx.get())) {
            if (!reserved) {
                throw std::runtime_error("HalfV: failed to allocate the compute buffers of a stage");
            }
            // this late, decoding must not throw; the graph is given memory when it is needed, or fails then
            LLAMA_LOG_WARN("%s: HalfV: failed to allocate the compute buffers of a stage\n", __func__);
        }
    }
    reserved = true;
}

// the largest graphs that choose on the device, and where their results come down to
void prefill::reserve_choice() {
    const auto & hparams = ctx.model.hparams;
    const int32_t il = memory.asked[0];
    const auto n_most = [&](const state_store & store) {
        return (int) std::min<uint64_t>({ cover_group_max, ctx.cparams.n_ctx, (uint64_t) store.tensor()->ne[1] });
    };
    std::vector<device_graph> graphs;
    for (const auto & at : memory.stores) {
        const std::vector<state_ref> asking(asks_with_all() && &at == &memory.stores[0] ? dots_queries : 1);
        if (at.on_device()) { graphs.push_back(dots_graph(at.keys, at.queries, asking, n_most(at.keys), hparams.n_head(il), hparams.n_head_kv(il))); }
    }
    const auto & hidden = memory.stores[0].hidden;
    if (hidden.tensor()) { graphs.push_back(similarities_graph(hidden, hparams.n_embd, n_most(hidden))); }
    for (const auto & g : graphs) {
        ggml_backend_sched_reset(ctx.sched.get());
        put_inputs(g);
        if (!ggml_backend_sched_reserve(ctx.sched.get(), g.graph)) {
            LLAMA_LOG_WARN("%s: HalfV: no room to choose tokens on the device: it needs memory when it is done\n", __func__);
        }
    }
    if (gram || !hidden.tensor()) {
        return;
    }
    const size_t size = similarities_layout(n_most(hidden)).size();
    auto * type = ggml_backend_dev_host_buffer_type(ggml_backend_buft_get_device(hidden.buffer_type()));
    if (type) { pinned.reset(ggml_backend_buft_alloc_buffer(type, size*sizeof(float))); }
    if (!pinned) { gram_memory.reset(new float[size]); }
    gram = pinned ? (float *) ggml_backend_buffer_get_base(pinned.get()) : gram_memory.get();
}

// Inputs of a graph that chooses go straight to its device: parts of them would each cross on their own.
void prefill::put_inputs(const device_graph & g) const {
    auto * sched = ctx.sched.get();
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        if (ggml_backend_get_device(backend) == g.device) {
            ggml_backend_sched_set_tensor_backend(sched, g.ids, backend);
            if (g.norm) { ggml_backend_sched_set_tensor_backend(sched, g.norm, backend); }
        }
    }
}

bool prefill::run(const device_graph & g, const state_store & store, const std::vector<state_ref> & rows, float * out) {
    auto * sched = ctx.sched.get();
    ctx.gf_res_prev_active = nullptr; // its memory is given to this one
    ggml_backend_sched_reset(sched);
    ggml_backend_sched_set_eval_callback(sched, nullptr, nullptr);
    put_inputs(g);
    if (!ggml_backend_sched_alloc_graph(sched, g.graph)) {
        return false;
    }
    std::vector<int32_t> ids;
    for (const auto & r : rows) { ids.push_back(store.row_of(r)); }
    wait_for_device(); // what runs may use their memory
    ggml_backend_tensor_set(g.ids, ids.data(), 0, ggml_nbytes(g.ids));
    if (g.norm) { ggml_backend_tensor_set(g.norm, final_norm().data(), 0, ggml_nbytes(g.norm)); }

    bool ok = ggml_backend_sched_graph_compute_async(sched, g.graph) == GGML_STATUS_SUCCESS;
    for (const auto & output : g.outputs) {
        if (ok) { read(output.tensor, out + output.at); }
    }
    wait_for_device();
    return ok;
}

int prefill::run(std::vector<step> steps, const std::function<void(const llama_ubatch &, const llm_graph_result &)> & collect) {
    if (steps.empty()) {
        return 0;
    }
    const auto mctx = memory.init_steps(std::move(steps));
    if (mctx->get_status() != LLAMA_MEMORY_STATUS_SUCCESS) {
        LLAMA_LOG_WARN("%s: HalfV: no room in the KV cache\n", __func__);
        return 1;
    }
    do {
        if (aborted()) { // a GPU's graphs do not ask
            return 2;
        }
        const auto & ubatch = mctx->get_ubatch();
        ggml_status status = GGML_STATUS_SUCCESS;
        const auto * res = ctx.process_ubatch(ubatch, LLM_GRAPH_TYPE_DEFAULT, mctx.get(), status);
        if (!res) {
            return status == GGML_STATUS_ABORTED ? 2 : status == GGML_STATUS_ALLOC_FAILED ? -2 : -3;
        }
        if (collect) {
            collect(ubatch, *res);
        }
    } while (mctx->next());
    return 0;
}

void prefill::wait_for_device() const {
    ggml_backend_sched_synchronize(ctx.sched.get());
}

// the rows of a tensor
void prefill::read(ggml_tensor * tensor, state_store & store, const std::vector<state_ref> & refs) const {
    ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(ctx.sched.get(), tensor);
    const size_t size = store.width*sizeof(float);
    GGML_ASSERT(ggml_nbytes(tensor) == refs.size()*size);
    for (size_t i = 0, n; i < refs.size(); i += n) {
        n = store.run(refs, i);
        if (refs[i]) { ggml_backend_tensor_get_async(backend, tensor, store.host(refs[i]), i*size, n*size); }
    }
}

void prefill::read(ggml_tensor * tensor, float * dst) const {
    ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(ctx.sched.get(), tensor);
    ggml_backend_tensor_get_async(backend, tensor, dst, 0, ggml_nbytes(tensor));
}

// `width` floats per row; with a stream per sequence the rows of each of n_seqs sequences follow each other
static llama_ubatch new_ubatch(uint32_t n, uint32_t n_seqs, uint32_t n_pos, size_t width, bool tokens, bool own_stream) {
    auto data = std::make_shared<llama_ubatch::data_t>();
    data->token     .resize(tokens ? n : 0);
    data->embd      .resize(n*width);
    data->pos       .resize(n*n_pos);
    data->n_seq_id  .resize(n, 1);
    data->seq_id    .resize(n);
    data->seq_idx   .resize(LLAMA_MAX_SEQ, -1);
    data->output    .resize(n);
    data->batch_idxs.resize(n);

    return {
        /*.b_equal_seqs =*/ own_stream,
        /*.n_tokens     =*/ n,
        /*.n_seq_tokens =*/ own_stream ? n/n_seqs : 1,
        /*.n_seqs       =*/ own_stream ? n_seqs : n,
        /*.n_seqs_unq   =*/ 0,
        /*.n_pos        =*/ n_pos,
        /*.token        =*/ tokens ? data->token.data() : nullptr,
        /*.embd         =*/ width > 0 ? data->embd.data() : nullptr,
        /*.pos          =*/ data->pos.data(),
        /*.n_seq_id     =*/ data->n_seq_id.data(),
        /*.seq_id       =*/ data->seq_id.data(),
        /*.seq_id_unq   =*/ nullptr,
        /*.seq_idx      =*/ data->seq_idx.data(),
        /*.output       =*/ data->output.data(),
        /*.data         =*/ data,
    };
}

static void set_sequences(llama_ubatch & ubatch, std::vector<llama_seq_id> seq_ids) {
    auto & data = *ubatch.data;
    data.seq_id_data = std::move(seq_ids);
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        data.seq_id[i] = &data.seq_id_data[i];
    }
    data.seq_id_unq = data.seq_id_data;
    std::sort(data.seq_id_unq.begin(), data.seq_id_unq.end());
    data.seq_id_unq.erase(std::unique(data.seq_id_unq.begin(), data.seq_id_unq.end()), data.seq_id_unq.end());
    for (size_t i = 0; i < data.seq_id_unq.size(); ++i) {
        data.seq_idx[data.seq_id_unq[i]] = i;
    }
    ubatch.seq_id_unq = data.seq_id_unq.data();
    ubatch.n_seqs_unq = data.seq_id_unq.size();
}

llama_ubatch prefill::ubatch_of_batch(const llama_batch & batch, const std::vector<int32_t> & idxs, uint32_t n_seqs) const {
    const auto & hparams = ctx.model.hparams;
    const uint32_t n     = idxs.size();
    const uint32_t n_pos = hparams.n_pos_per_embd();
    const size_t   width = batch.embd ? hparams.n_embd_inp() : 0;

    // rows that follow each other are read where they are: a picture of 4096 tokens may have 270 MB
    const bool in_place = n > 0 && idxs[n - 1] - idxs[0] == (int32_t) n - 1 && std::is_sorted(idxs.begin(), idxs.end());
    llama_ubatch res = new_ubatch(n, n_seqs, n_pos, in_place ? 0 : width, batch.token, memory.equal_seqs());
    if (batch.embd && in_place) { res.embd = batch.embd + idxs[0]*width; }
    std::vector<llama_seq_id> seq_ids(n);
    for (uint32_t i = 0; i < n; ++i) {
        const int32_t idx = idxs[i];
        if (batch.token) { res.token[i] = batch.token[idx]; }
        if (batch.embd && !in_place) { memcpy(res.embd + i*width, batch.embd + idx*width, width*sizeof(float)); }
        for (uint32_t j = 0; j < n_pos; ++j) {
            res.pos[j*n + i] = batch.pos[(batch.token ? 0 : (size_t) j*batch.n_tokens) + idx];
        }
        res.output[i] = batch.logits[idx];
        res.data->batch_idxs[i] = idx;
        seq_ids[i] = batch.seq_id[idx][0];
    }
    set_sequences(res, std::move(seq_ids));
    return res;
}

static bool is_text(const row & r) { return r.token >= 0; }

llama_ubatch prefill::ubatch_of_rows(llama_seq_id seq_id, const row * rows, uint32_t n, size_t most, bool by_kind) const {
    const uint32_t n_pos = ctx.model.hparams.n_pos_per_embd();

    const bool tokens = is_text(rows[0]) && by_kind; // which is what the builder asks
    std::vector<float> state;
    if (most > 0) { rows[0].hidden.read(state); }
    const size_t width = std::min(state.size(), most);
    llama_ubatch res = new_ubatch(n, 1, n_pos, width, tokens, memory.equal_seqs());
    for (uint32_t i = 0; i < n; ++i) {
        if (tokens) { res.token[i] = rows[i].token; }
        if (width > 0) {
            rows[i].hidden.read(state);
            memcpy(res.embd + i*width, state.data(), width*sizeof(float));
        }
        for (uint32_t j = 0; j < n_pos; ++j) {
            res.pos[j*n + i] = rows[i].pos[j];
        }
        res.output[i] = rows[i].output;
        res.data->batch_idxs[i] = rows[i].batch_idx;
    }
    if (tokens) { res.embd = nullptr; } // the states are in its data, where a graph's input finds them
    set_sequences(res, std::vector<llama_seq_id>(n, seq_id));
    return res;
}

llama_ubatch prefill::ubatch_of_token(llama_seq_id seq_id, const row & r) const {
    const uint32_t n_pos = ctx.model.hparams.n_pos_per_embd();

    llama_ubatch res = new_ubatch(1, 1, n_pos, 0, true, memory.equal_seqs());
    res.token[0] = r.token;
    std::copy_n(r.pos.begin(), n_pos, res.pos);
    set_sequences(res, { seq_id });
    return res;
}

// Sequences that wait for nothing, through all layers. As upstream splits a batch: in its order where sequences share a
// cache, else equally many tokens of sequences whose streams follow each other.
std::vector<step> prefill::whole_steps(const llama_batch & batch, std::vector<share> parts) const {
    size_t n_all = 0;
    for (const auto & part : parts) { n_all += part.idxs.size(); }
    const size_t n_ubatch = memory.ubatch_size({}, n_all);
    std::vector<step> steps;
    const auto add = [&](const std::vector<int32_t> & idxs, size_t n_seqs) {
        steps.push_back({ ubatch_of_batch(batch, idxs, n_seqs) });
    };

    if (!memory.equal_seqs()) {
        std::vector<int32_t> idxs;
        for (const auto & part : parts) { idxs.insert(idxs.end(), part.idxs.begin(), part.idxs.end()); }
        std::sort(idxs.begin(), idxs.end());
        for (size_t i = 0; i < idxs.size(); i += n_ubatch) {
            add({ idxs.begin() + i, idxs.begin() + std::min(idxs.size(), i + n_ubatch) }, 1);
        }
        return steps;
    }

    std::sort(parts.begin(), parts.end(), [](const share & a, const share & b) { return a.seq_id < b.seq_id; });
    std::vector<size_t> done(parts.size(), 0);
    const auto left = [&](size_t i) { return parts[i].idxs.size() - done[i]; };
    for (size_t first = 0; first < parts.size();) {
        if (left(first) == 0) {
            ++first;
            continue;
        }
        size_t end = first + 1, n = left(first);
        while (!memory.recurs() && end < parts.size() && end - first < n_ubatch && parts[end].seq_id == parts[end - 1].seq_id + 1 && left(end) > 0) {
            n = std::min(n, left(end++));
        }
        n = std::min(n, n_ubatch/(end - first));
        std::vector<int32_t> idxs;
        for (size_t i = first; i < end; ++i) {
            const auto from = parts[i].idxs.begin() + done[i];
            idxs.insert(idxs.end(), from, from + n);
            done[i] += n;
        }
        add(idxs, end - first);
    }
    return steps;
}

prefill::given prefill::room_for(const graph_pass & pass, const std::vector<bool> & has_key) {
    const size_t n_keys = std::count(has_key.begin(), has_key.end(), true);
    const size_t n_queries = pass.tap < 0 ? 0 : pass.all_ask ? has_key.size() : 1;
    given res;
    res.stores = &memory.after(pass);
    auto & stores = *res.stores;
    std::vector<state_ref> keys;
    if (stores.on_device() && !wants_queries()) {
        res.hidden  = stores.hidden.take_on_device(has_key.size());
        keys        = stores.keys.take_on_device(n_keys);
        res.queries = stores.queries.take_on_device(n_queries);
        res.stored  = res.hidden.size() == has_key.size() && keys.size() == n_keys && res.queries.size() == n_queries;
    }
    if (!res.stored) {
        res.hidden  = stores.hidden.take_on_host(has_key.size());
        keys        = stores.keys.take_on_host(n_keys);
        res.queries = stores.queries.take_on_host(n_queries);
    }
    auto key = keys.begin();
    for (const bool has : has_key) { res.keys.push_back(has ? *key++ : state_ref()); }
    return res;
}

struct step::io prefill::given::rows(size_t first, size_t end) const {
    const auto of = [&](const std::vector<state_ref> & refs) { return std::vector<state_ref>(refs.begin() + first, refs.begin() + end); };
    return { { {}, { stored, stores->hidden.companion } }, {}, of(hidden), of(keys), queries.size() == hidden.size() ? of(queries) : queries };
}

// what a step has given for these rows, if it is not where it belongs already
void prefill::bring_down(const llm_graph_result & res, const given & gives, size_t first, size_t end) {
    if (gives.stored) {
        return;
    }
    const auto rows = gives.rows(first, end);
    read(res.t_embd, gives.stores->hidden, rows.out);
    if (!rows.queries.empty()) {
        read(res.halfv_cut.keys, gives.stores->keys, rows.keys);
        read(res.halfv_cut.queries, gives.stores->queries, rows.queries);
    }
    wait_for_device();
}

std::vector<step> prefill::steps_of(llama_seq_id seq_id, const std::vector<row> & rows, const graph_pass & pass, const given * gives) const {
    const bool stored = memory.before(pass).on_device() && on_device(rows);
    if (!stored && std::any_of(rows.begin(), rows.end(), [](const row & r) { return r.hidden.on_device(); })) {
        wait_for_device();
    }
    const size_t width = stored ? 0 : pass.first == 0 ? ctx.model.hparams.n_embd_inp() : SIZE_MAX; // of a row, at most
    const size_t n_ubatch = memory.ubatch_size(pass, rows.size());
    const bool by_kind = cuts_of(ctx.model).by_kind || pass.first == 0; // where embeddings enter, each kind may be scaled
    std::vector<step> steps;
    for (size_t i = 0; i < rows.size();) {
        // a non-causal picture stays in one piece: its batch did fit into one
        size_t end = i;
        while (end < rows.size() && rows[end].group == rows[i].group && (rows[i].group >= 0 || end - i < n_ubatch) &&
               rows[end].narrow == rows[i].narrow && (!by_kind || is_text(rows[end]) == is_text(rows[i]))) {
            ++end;
        }
        steps.push_back({ ubatch_of_rows(seq_id, &rows[i], end - i, width, by_kind), pass, rows[i].group < 0 });
        steps.back().pass.narrow = rows[i].narrow;
        steps.back().pass.near   = rows[i].narrow && rows[i].group < 0 && memory.profile.neighbours_width > 0;
        auto & io = steps.back().io;
        if (gives) { io = gives->rows(i, end); }
        io.ends.in = { stored, rows[i].hidden.companion() };
        if (stored) {
            io.in = refs_of({ rows.begin() + i, rows.begin() + end }, &row::hidden);
        }
        for (size_t j = i; j < end && rows[j].cell >= 0; ++j) { steps.back().cells.push_back(rows[j].cell); }
        i = end;
    }
    return steps;
}

} // namespace halfv
