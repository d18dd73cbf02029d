// Layer by layer through a prompt, for calibration. One boundary of states is held at a time, whatever the depth: the
// prompt goes through one layer whole before it enters the next, and finds its cells again in each.

#include "halfv-cut.h"
#include "halfv-policy.h"
#include "halfv-prefill.h"
#include "halfv-selection.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace halfv {

static constexpr int STOPPED = 3; // beside the codes of llama_decode

void prefill::hold(bool on) {
    held.reset();
    if (on) {
        held = held_prompt{};
        held->states = std::make_unique<state_store>(ctx.model.hparams.n_embd*cuts_of(ctx.model).n_states, cuts_of(ctx.model).companion(0));
    }
}

void token_embedding(const ggml_tensor * table, int32_t token, float * dst) {
    const int64_t n = table->ne[0];
    std::vector<uint8_t> raw(ggml_row_size(table->type, n));
    ggml_backend_tensor_get(table, raw.data(), (size_t) token*table->nb[1], raw.size());
    if (table->type == GGML_TYPE_F32) {
        memcpy(dst, raw.data(), raw.size());
    } else {
        ggml_get_type_traits(table->type)->to_float(raw.data(), dst, n);
    }
}

// what the builder multiplies its embedding by
float prefill::scale_of(const row & r) const {
    return cuts_of(ctx.model).scales[r.token < 0];
}

int prefill::hold_batch(const llama_batch & batch, bool visual) {
    if (held->seq_id < 0) {
        held->seq_id = batch.seq_id[0][0];
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (batch.logits[i] || batch.n_seq_id[i] > 1 || batch.seq_id[i][0] != held->seq_id) {
            LLAMA_LOG_ERROR("%s: HalfV: a held prompt has one sequence and asks for no outputs\n", __func__);
            return -1;
        }
    }
    const uint32_t n_pos = ctx.model.hparams.n_pos_per_embd();
    const int32_t  group = ctx.cparams.causal_attn ? -1 : next_group(held->rows);
    const auto &   part  = held->states->companion;
    const size_t   n_embd = ctx.model.hparams.n_embd;
    std::vector<float> input(ctx.model.hparams.n_embd_inp(), 0.0f); // what deep-stack layers add to text stays 0
    const auto     refs  = held->states->take_on_host(batch.n_tokens);
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        float * state = held->states->host(refs[i]);
        if (batch.token) {
            token_embedding(ctx.model.tok_embd, batch.token[i], input.data());
        } else {
            memcpy(input.data(), batch.embd + i*input.size(), input.size()*sizeof(float));
        }
        std::copy_n(input.begin(), n_embd, state); // more there is only behind the first layer
        std::copy_n(input.begin() + part.first, part.n, state + held->states->n_state());
        row r = {};
        for (uint32_t j = 0; j < n_pos && !(batch.token && j == 3); ++j) { // the fourth is 0 for text
            r.pos[j] = batch.pos[(batch.token ? 0 : (size_t) j*batch.n_tokens) + i];
        }
        r.image  = visual ? 0 : -1;
        r.token  = batch.token ? batch.token[i] : LLAMA_TOKEN_NULL;
        r.hidden = refs[i];
        r.group  = group;
        held->rows.push_back(r);
    }
    return ctx.output_reserve(0) == 0 ? -2 : 0;
}

int32_t prefill::observe(const uint8_t * freeze, halfv_observer observer, void * user) {
    if (!held || held->rows.empty()) {
        return HALFV_NOTHING;
    }
    stopped = false;
    auto prompt = std::move(*held);
    held.reset();
    if (cuts_of(ctx.model).centred) {
        return HALFV_ERR_UNSUPPORTED;
    }
    // behind a frozen layer all tokens are run once more, which needs keys and values of their own in each
    std::vector<uint8_t> frozen(memory.bounds[n_stages]);
    const int32_t first = cuts_of(ctx.model).n_states > 1; // what enters layer 0 is one state, and more are made of it
    for (int32_t il = memory.bounds[n_stages] - 1; freeze && il >= first && memory.attends(il) && !memory.recurs(il) && ctx.model.hparams.has_kv(il); --il) {
        frozen[il] = freeze[il];
    }
    if (prompt.rows.back().image >= 0 || memory.seq_pos_max(prompt.seq_id) >= 0) {
        return HALFV_ERR_ARGUMENT;
    }
    ctx.sched_reserve();
    ctx.memory_update(false);

    const int rc = observe_layers(prompt, frozen, observer, user);
    if (rc != 0) {
        memory.seq_rm(prompt.seq_id, -1, -1);
    }
    return rc == 0 ? HALFV_OK : rc == 1 || rc == -2 ? HALFV_ERR_MEMORY : HALFV_ERR_COMPUTE;
}

int prefill::observe_layers(held_prompt & prompt, const std::vector<uint8_t> & freeze, halfv_observer observer, void * user) {
    const int32_t n_layer = memory.bounds[n_stages];
    const size_t  n = prompt.rows.size(), n_embd = ctx.model.hparams.n_embd, n_state = prompt.states->n_state();

    std::vector<float>   now(n*n_embd), next(n*n_state), attention(n), logits(ctx.model.vocab.n_tokens());
    std::vector<uint8_t> visual(n);
    for (size_t i = 0; i < n; ++i) {
        const row & r = prompt.rows[i];
        const float scale = scale_of(r);
        visual[i] = r.image >= 0;
        std::transform(prompt.states->host(r.hidden), prompt.states->host(r.hidden) + n_embd, now.data() + i*n_embd, [&](float x) { return x*scale; });
    }
    const auto & norm = final_norm();
    halfv_boundary seen = {
        /*.size      =*/ sizeof(halfv_boundary),
        /*.layer     =*/ 0,
        /*.n_tokens  =*/ (int32_t) n,
        /*.n_embd    =*/ (int32_t) n_embd,
        /*.n_vocab   =*/ (int32_t) logits.size(),
        /*.norm_eps  =*/ ctx.model.hparams.f_norm_rms_eps,
        /*.norm      =*/ norm.data(),
        /*.states    =*/ now.data(),
        /*.visual    =*/ visual.data(),
        /*.attention =*/ attention.data(),
        /*.logits    =*/ nullptr,
    };
    for (; seen.layer < n_layer; ++seen.layer) {
        const int32_t il = seen.layer;
        seen.logits = nullptr;
        if (freeze[il]) {
            if (const int rc = frozen_logits(prompt, il, logits.data())) {
                return rc;
            }
            seen.logits = logits.data();
        }
        seen.attention = memory.attends(il) && ctx.model.hparams.has_kv(il) ? attention.data() : nullptr;
        if (const int rc = observe_layer(prompt, il, next.data(), attention.data())) {
            return rc;
        }
        if (!observer(&seen, user)) {
            return STOPPED;
        }
        if (il == n_layer - 1) { // over the same states, so that frozen and unfrozen logits differ by the freezing alone
            memory.rewind(prompt.seq_id, { il });
            if (const int rc = last_logits(prompt, prompt.rows, il, logits.data())) {
                return rc;
            }
        }
        for (size_t i = 0; i < n; ++i) {
            memcpy(prompt.states->host(prompt.rows[i].hidden), next.data() + i*n_state, n_state*sizeof(float));
            memcpy(now.data() + i*n_embd, next.data() + i*n_state, n_embd*sizeof(float));
        }
    }
    seen.attention = nullptr;
    seen.logits    = logits.data();
    return observer(&seen, user) ? 0 : STOPPED;
}

// one layer over the whole prompt: the states that leave it, and where its last token looks
int prefill::observe_layer(const held_prompt & prompt, int32_t il, float * out, float * attention) {
    const auto & hparams = ctx.model.hparams;
    const size_t n = prompt.rows.size(), n_state = prompt.states->n_state(), n_head_embd = hparams.n_embd_head_k(il);
    const bool   is_last = il + 1 == memory.bounds[n_stages];

    auto rows = prompt.rows;
    for (auto & r : rows) { r.output = is_last; } // or the last layer would leave them out
    const bool attends = memory.attends(il) && hparams.has_kv(il); // to keys of its own
    const graph_pass pass = { il, il + 1, INT32_MAX, attends ? il : -1, true };
    memory.rewind(prompt.seq_id, pass);

    std::vector<float> query, keys(n*hparams.n_embd_k_gqa(il));
    size_t i = 0;
    const int rc = run(steps_of(prompt.seq_id, rows, pass), [&](const llama_ubatch & ubatch, const llm_graph_result & res) {
        read(res.t_embd, out + i*n_state);
        if (attends) {
            read(res.halfv_cut.keys, keys.data() + i*hparams.n_embd_k_gqa(il));
            query.resize(ggml_nelements(res.halfv_cut.queries));
            read(res.halfv_cut.queries, query.data());
        }
        wait_for_device();
        i += ubatch.n_tokens;
    });

    if (rc != 0 || !attends) {
        return rc;
    }
    const float scale = hparams.f_attention_scale != 0.0f ? hparams.f_attention_scale : 1.0f/std::sqrt((float) n_head_embd);
    for (auto & q : query) { q *= scale; }
    visual_scores(query.data(), keys.data(), hparams.n_embd_k_gqa(il), n, hparams.n_head(il), hparams.n_head_kv(il), n_head_embd, attention);
    return rc;
}

// what the last token would say if layer il left the visual tokens as they are
int prefill::frozen_logits(const held_prompt & prompt, int32_t il, float * logits) {
    const auto & hparams = ctx.model.hparams;
    const size_t n_embd  = hparams.n_embd, n_state = prompt.states->n_state();
    std::vector<row> visual, text;
    for (const auto & r : prompt.rows) { (r.image >= 0 ? visual : text).push_back(r); }

    memory.rewind(prompt.seq_id, { il });
    if (const int rc = run(steps_of(prompt.seq_id, visual, { il, il + 1, il }), nullptr)) {
        return rc;
    }
    if (il + 1 == memory.bounds[n_stages]) {
        return last_logits(prompt, text, il, logits);
    }
    auto & states = *prompt.states;
    const size_t width = states.width;
    auto rows = prompt.rows; // each with a state of its own
    std::vector<float *> moving;
    std::vector<float> state, out;
    for (auto & r : rows) {
        r.hidden.read(state);
        r.hidden = states.take_on_host(1)[0];
        for (size_t j = 0; j < n_embd && il == 0; ++j) { state[j] *= scale_of(r); } // as it enters the layer
        states.write(r.hidden, state.data(), width);
        if (r.image < 0) { moving.push_back(states.host(r.hidden)); }
    }
    size_t i = 0;
    const int rc = run(steps_of(prompt.seq_id, text, { il, il + 1 }), [&](const llama_ubatch & ubatch, const llm_graph_result & res) {
        out.resize(ubatch.n_tokens*n_state);
        read(res.t_embd, out.data());
        wait_for_device();
        for (uint32_t j = 0; j < ubatch.n_tokens; ++j) {
            memcpy(moving[i++], out.data() + j*n_state, n_state*sizeof(float));
        }
    });
    if (rc != 0) {
        return rc;
    }
    // what a deep-stack layer adds is not the layer's own work
    for (const auto & r : rows) {
        float * x = states.host(r.hidden);
        for (size_t j = 0; j < n_embd && r.image >= 0 && deep_stack_follows(hparams, il); ++j) {
            x[j] += x[(il + 1)*n_embd + j];
        }
    }
    memory.rewind(prompt.seq_id, { il + 1 });
    return last_logits(prompt, rows, il + 1, logits);
}

int prefill::last_logits(const held_prompt & prompt, const std::vector<row> & rows, int32_t first, float * logits) {
    auto asking = rows;
    asking.back().output = true;
    return run(steps_of(prompt.seq_id, asking, { first }), [&](const llama_ubatch & ubatch, const llm_graph_result & res) {
        if (ubatch.output[ubatch.n_tokens - 1]) { // of the last token: some builders give those of all
            auto * t = res.t_logits;
            ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(ctx.sched.get(), t);
            const size_t n = std::min<size_t>(t->ne[0], ctx.model.vocab.n_tokens());
            ggml_backend_tensor_get_async(backend, t, logits, (t->ne[1] - 1)*t->nb[1], n*sizeof(float));
            wait_for_device();
        }
    });
}

} // namespace halfv
