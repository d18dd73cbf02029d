#include "halfv-prefill.h"
#include "halfv-profile.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <tuple>

namespace halfv {

// pruning that was asked for and did not happen: in the picture's statistics, and once in the log
void prefill::report(image & im, halfv_reason reason) {
    im.reason = reason;
    if (warned & (1u << reason)) {
        return;
    }
    warned |= 1u << reason;
    switch (reason) {
        case HALFV_REASON_SMALL:
            LLAMA_LOG_INFO("HalfV: a picture was not pruned: it has %d tokens, fewer than min_visual_tokens = %u\n", im.n, memory.profile.min_visual_tokens);
            break;
        case HALFV_REASON_DISABLED:
            LLAMA_LOG_INFO("HalfV: a picture was not pruned: pruning is switched off, or the profile keeps everything\n");
            break;
        case HALFV_REASON_OUTPUTS:
            LLAMA_LOG_WARN("HalfV: a picture was not pruned: outputs were asked for on visual rows, or embeddings of every row\n");
            break;
        case HALFV_REASON_SHARED:
            LLAMA_LOG_WARN("HalfV: a picture was not pruned: its tokens belong to several sequences at once\n");
            break;
        case HALFV_REASON_NONE:
            break;
    }
}

prefill_ptr prefill::attach(llama_context & ctx) {
    if (auto * memory = dynamic_cast<staged_memory *>(ctx.memory.get())) {
        const auto & p = memory->profile;
        LLAMA_LOG_INFO("%s: HalfV: keep %.3g of the visual tokens from layer %u, update %.3g from layer %u (rest %s)\n", __func__,
                p.ivr_keep, p.ivr_layer, p.ssr_update, p.ssr_layer, p.ssr_rest == HALFV_REST_FROZEN ? "frozen" : "dropped");
        return std::make_unique<prefill>(ctx, *memory);
    }
    if (ctx.model.halfv_profile->exists()) {
        LLAMA_LOG_WARN("%s: HalfV: this model has a profile, but its architecture (%s) or this kind of context runs unpruned\n",
                __func__, ctx.model.arch_name().c_str());
    }
    return nullptr;
}

prefill::prefill(llama_context & ctx, staged_memory & memory) : memory(memory), ctx(ctx), cost(ctx.model) {
    for (const auto & backend : ctx.backends) {
        const auto type = ggml_backend_dev_type(ggml_backend_get_device(backend.get()));
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            device = backend.get();
            break;
        }
    }
}

bool prefill::prunes_now() const {
    return enabled && prunes(memory.profile, memory.bounds[n_stages]);
}

bool prefill::applies(const image & im) const {
    return prunes_now() && im.n >= (int64_t) memory.profile.min_visual_tokens;
}

//
// decode
//

static std::vector<llama_seq_id> sequences_of(const llama_batch & batch) {
    std::vector<llama_seq_id> res;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        for (int32_t j = 0; j < batch.n_seq_id[i]; ++j) {
            if (std::find(res.begin(), res.end(), batch.seq_id[i][j]) == res.end()) {
                res.push_back(batch.seq_id[i][j]);
            }
        }
    }
    return res;
}

std::optional<int> prefill::decode(llama_memory_context_ptr & mctx) {
    try {
        return decode_batch(mctx);
    } catch (const std::bad_alloc &) {
        LLAMA_LOG_ERROR("%s: HalfV: out of host memory\n", __func__);
        return -2;
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: HalfV: %s\n", __func__, err.what());
        return -3;
    }
}

halfv_reason prefill::refusal(const llama_batch & batch, bool visual) const {
    const auto & cparams = ctx.cparams;
    const auto & taps = cparams.embeddings_layer_inp;
    if (!prunes_now()) {
        return HALFV_REASON_DISABLED;
    }
    if (cparams.embeddings || cparams.embeddings_nextn || std::find(taps.begin(), taps.end(), true) != taps.end()) {
        return HALFV_REASON_OUTPUTS;
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (visual && batch.logits[i]) {
            return HALFV_REASON_OUTPUTS;
        }
        if (batch.n_seq_id[i] > 1) {
            return HALFV_REASON_SHARED;
        }
    }
    return HALFV_REASON_NONE;
}

bool prefill::is_lazy(llama_seq_id seq_id, bool visual) const {
    const auto * s = memory.find(seq_id);
    return visual || (s && s->lazy()) || (wants_attention() && memory.n_cells(0, seq_id) == 0);
}

std::optional<int> prefill::decode_batch(llama_memory_context_ptr & mctx) {
    const llama_batch & batch = ctx.balloc->get_batch();
    const bool visual = batch.embd && !batch.token && media == HALFV_MEDIA_VISUAL;

    stopped = false;
    if (held) {
        return hold_batch(batch, visual);
    }
    if (!visual && !memory.any_open(batch) && !memory.any_lazy() && !wants_attention()) {
        return std::nullopt;
    }
    if (const auto reason = refusal(batch, visual); reason != HALFV_REASON_NONE) {
        return decode_whole(mctx, batch, visual, reason);
    }

    std::vector<share> lazy, ordinary;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const llama_seq_id seq_id = batch.seq_id[i][0];
        auto & parts = is_lazy(seq_id, visual) ? lazy : ordinary;
        auto part = std::find_if(parts.begin(), parts.end(), [&](const share & p) { return p.seq_id == seq_id; });
        if (part == parts.end()) {
            part = parts.insert(parts.end(), { seq_id, {}, false });
        }
        part->idxs.push_back(i);
        part->output = part->output || batch.logits[i];
    }
    if (lazy.empty()) {
        return decode_whole(mctx, batch, visual, HALFV_REASON_NONE);
    }

    auto transaction = std::make_unique<staged_memory::transaction>(memory, sequences_of(batch));
    if (!visual) {
        memory.close_images(batch);
    }

    std::vector<step> last;
    for (const auto & part : lazy) {
        int rc = stage1(part, visual);
        if (rc == 0 && part.output) {
            rc = settle(part.seq_id, when::question, &last);
        }
        if (rc != 0) {
            return rc;
        }
    }
    for (auto & step : whole_steps(batch, std::move(ordinary))) { last.push_back(std::move(step)); }

    if (last.empty()) {
        if (ctx.output_reserve(0) == 0) {
            return -2;
        }
        transaction->commit();
        new_image = false;
        book_as_prompt();
        return 0;
    }

    // the caller maps outputs to rows in the order of the steps
    ctx.balloc->split_reset();
    auto & out_ids = ctx.balloc->get_out_ids();
    for (const auto & step : last) {
        for (uint32_t i = 0; i < step.ubatch.n_tokens; ++i) {
            if (step.ubatch.output[i]) { out_ids.push_back(step.ubatch.data->batch_idxs[i]); }
        }
    }

    auto staged = memory.init_steps(std::move(last));
    if (staged->get_status() != LLAMA_MEMORY_STATUS_SUCCESS) {
        LLAMA_LOG_WARN("%s: failed to find a memory slot for batch of size %d\n", __func__, batch.n_tokens);
        return 1;
    }
    const int64_t t_start = ggml_time_us();
    staged->transaction = std::move(transaction);
    staged->on_done = [this, lazy, t_start]() {
        new_image = false;
        book_as_prompt();
        for (const auto & part : lazy) {
            if (part.output) { memory.at(part.seq_id).stats.us_stage3 += ggml_time_us() - t_start; }
        }
    };
    mctx = std::move(staged);
    return std::nullopt;
}

// A batch through all layers. What its sequences still wait with goes first, taking their last token for the question.
std::optional<int> prefill::decode_whole(llama_memory_context_ptr & mctx, const llama_batch & batch, bool visual, halfv_reason reason) {
    const auto seq_ids = sequences_of(batch);
    auto transaction = std::make_unique<staged_memory::transaction>(memory, seq_ids);
    for (const auto id : seq_ids) {
        if (const auto * s = memory.find(id); s && s->lazy()) {
            if (const int rc = settle(id, when::question, nullptr)) {
                return rc;
            }
        }
    }
    if (visual) {
        for (const auto id : seq_ids) { memory.keep_lists(id); }
        note_unpruned(batch, reason);
    } else {
        memory.close_images(batch);
    }

    auto staged = memory.init_batch(*ctx.balloc, ctx.cparams.n_ubatch);
    if (staged->get_status() != LLAMA_MEMORY_STATUS_SUCCESS) {
        LLAMA_LOG_WARN("%s: failed to find a memory slot for batch of size %d\n", __func__, batch.n_tokens);
        return 1;
    }
    staged->transaction = std::move(transaction);
    staged->on_done     = [this]() { new_image = false; };
    mctx = std::move(staged);
    return std::nullopt;
}

void prefill::note_unpruned(const llama_batch & batch, halfv_reason reason) {
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        for (int32_t j = 0; j < batch.n_seq_id[i]; ++j) {
            auto & images = memory.at(batch.seq_id[i][j]).images;
            if (images.empty() || images.back().closed || (i == 0 && new_image)) {
                images.emplace_back();
                images.back().pos = batch.pos[i];
            }
            auto & im = images.back();
            report(im, reason);
            im.kept.push_back(im.n);
            im.deep.push_back(im.n++);
            im.settled = true;
        }
    }
}

bool prefill::aborted() {
    stopped = stopped || (ctx.abort_callback && ctx.abort_callback(ctx.abort_callback_data));
    return stopped;
}

// llama_perf takes a batch of one token for generation; one that waits, or settles a picture, is still the prompt
void prefill::book_as_prompt() {
    const bool one = ctx.n_queued_tokens == 1;
    if (one) { ctx.n_queued_tokens = 2; }
    ctx.synchronize();
    if (one) { ctx.n_p_eval--; }
}

//
// stages
//

int prefill::stage1(const share & part, bool visual) {
    const auto & hparams = ctx.model.hparams;
    const auto & bounds  = memory.bounds;
    const llama_batch & batch = ctx.balloc->get_batch();
    const int64_t t_start = ggml_time_us();
    const bool keeps_keys = visual || wants_attention();
    const graph_pass pass = { bounds[0], bounds[1], false, bounds[1] - 1, wants_attention() };

    std::vector<step> steps;
    for (size_t i = 0; i < part.idxs.size(); i += ctx.cparams.n_ubatch) {
        const auto end = std::min(part.idxs.size(), i + ctx.cparams.n_ubatch);
        steps.push_back({ ubatch_of_batch(batch, { part.idxs.begin() + i, part.idxs.begin() + end }, 1), pass });
    }

    auto & s = memory.at(part.seq_id);
    const uint64_t before = memory.n_cells(0, part.seq_id);
    const uint64_t n_all  = part.idxs.size();
    const int32_t  group  = ctx.cparams.causal_attn ? -1 : n_groups++;

    if (visual) {
        const bool follows = !s.images.empty() && !s.images.back().closed && !new_image &&
                             !s.rows.empty() && s.rows.back().image == (int32_t) s.images.size() - 1;
        if (!follows) {
            s.images.emplace_back();
            s.images.back().pos = batch.pos[part.idxs[0]];
        }
    }

    const int rc = run(std::move(steps), [&](const llama_ubatch & ubatch, const llm_graph_result & res) {
        const uint32_t n      = ubatch.n_tokens;
        const uint32_t hidden = s.hidden.grow(n);
        const uint32_t keys   = keeps_keys ? s.keys.grow(n) : 0;

        // a wider row has room for what deep-stack layers add later
        std::vector<float> narrow(memory.n_hidden == hparams.n_embd ? 0 : (size_t) n*hparams.n_embd);
        read(res.t_embd, narrow.empty() ? s.hidden.at(hidden) : narrow.data());
        if (keeps_keys) {
            read(res.t_halfv_k, s.keys.at(keys));
        }
        s.query.resize(ggml_nelements(res.t_halfv_q));
        read(res.t_halfv_q, s.query.data());
        ggml_backend_sched_synchronize(ctx.sched.get());

        for (uint32_t i = 0; i < n; ++i) {
            if (!narrow.empty()) {
                float * dst = s.hidden.at(hidden + i);
                memcpy(dst, narrow.data() + (size_t) i*hparams.n_embd, hparams.n_embd*sizeof(float));
                if (ubatch.embd) {
                    memcpy(dst + hparams.n_embd, ubatch.embd + (size_t) i*memory.n_hidden + hparams.n_embd, (memory.n_hidden - hparams.n_embd)*sizeof(float));
                }
            }
            row r = {};
            for (uint32_t j = 0; j < ubatch.n_pos; ++j) {
                r.pos[j] = ubatch.pos[j*n + i];
            }
            if (ubatch.token) {
                r.pos[3] = 0; // as llm_graph_input_pos does for text
            }
            r.image     = visual ? (int32_t) s.images.size() - 1 : -1;
            r.index     = visual ? s.images.back().n++ : -1;
            r.hidden    = hidden + i;
            r.key       = keeps_keys ? (int32_t) (keys + i) : -1;
            r.group     = group;
            r.batch_idx = ubatch.data->batch_idxs[i];
            r.output    = ubatch.output[i];
            s.rows.push_back(r);
        }
    });

    s.stats.us_stage1   += ggml_time_us() - t_start;
    s.stats.flops_dense += cost.span(bounds[0], bounds[n_stages], n_all, before);
    s.stats.flops_spent += cost.span(bounds[0], bounds[1],        n_all, before);
    return rc;
}

// Carries a sequence's pending tokens through the later stages. The last pass goes to `last` when that is given.
// Before the question only what needs none is done; the rest stays pending.
int prefill::settle(llama_seq_id seq_id, when moment, std::vector<step> * last) {
    const auto & p = memory.profile;
    const auto & bounds = memory.bounds;
    const bool three     = memory.has_stage(2);
    const bool asks_deep = three && prunes_now() && p.ssr_update > 0.0f && p.ssr_update < 1.0f; // stage III needs the question
    auto & s = memory.at(seq_id);
    memory.keep_lists(seq_id);

    // what this batch asked for
    uint64_t n_outputs = 0;
    for (const auto & r : s.rows) { n_outputs += r.output; }
    s.stats.flops_dense += cost.outputs(n_outputs);
    s.stats.flops_spent += cost.outputs(n_outputs);

    int64_t t_start = ggml_time_us();
    const auto lap = [&](int64_t & total) { const int64_t now = ggml_time_us(); total += now - t_start; t_start = now; };

    std::vector<row> go, wait, pruned;
    choose_stage2(s, moment, go, wait, pruned);
    if (stopped) {
        return 2;
    }
    lap(s.stats.us_select);

    // rows that went through stage II before the question, then those of now
    std::vector<row> deep;
    for (const auto & r : s.rows) {
        if (r.deep) { deep.push_back(r); }
    }

    s.stats.flops_spent += cost.span(bounds[1], bounds[2], go.size(), memory.n_cells(1, seq_id));
    const graph_pass pass2 = { bounds[1], three ? bounds[2] : INT32_MAX, false, asks_deep ? bounds[2] - 1 : -1, true };
    std::vector<float> query;

    // anchors that join a non-causal picture after the question must not see what followed it: they go causally
    auto fed = go;
    for (auto & r : fed) {
        if (r.image >= 0 && s.images[r.image].covered) { r.group = -1; }
    }
    if (!three && last) {
        for (auto & step : steps_of(seq_id, fed, s.hidden, pass2)) { last->push_back(std::move(step)); }
    } else {
        uint32_t i_go = 0;
        const size_t n_embd = ctx.model.hparams.n_embd;
        const int rc = run(steps_of(seq_id, fed, s.hidden, pass2), [&](const llama_ubatch & ubatch, const llm_graph_result & res) {
            if (!three) {
                return;
            }
            const uint32_t n = ubatch.n_tokens;
            std::vector<float> hidden(n*n_embd), keys(asks_deep ? n*memory.n_key : 0);
            read(res.t_embd, hidden.data());
            if (asks_deep) {
                read(res.t_halfv_k, keys.data());
                query.resize(ggml_nelements(res.t_halfv_q));
                read(res.t_halfv_q, query.data());
            }
            ggml_backend_sched_synchronize(ctx.sched.get());

            const uint32_t slot = s.hidden.grow(n);
            for (uint32_t i = 0; i < n; ++i, ++i_go) {
                auto & r = go[i_go];
                float * dst = s.hidden.at(slot + i);
                memcpy(dst, hidden.data() + i*n_embd, n_embd*sizeof(float));
                if (memory.n_hidden > n_embd) {
                    memcpy(dst + n_embd, s.hidden.at(r.hidden) + n_embd, (memory.n_hidden - n_embd)*sizeof(float));
                }
                r.hidden = slot + i;
                r.deep   = true;
                if (asks_deep && (r.image >= 0 || wants_attention())) {
                    r.key = s.keys.grow(1);
                    std::copy_n(keys.data() + i*memory.n_key, memory.n_key, s.keys.at(r.key));
                }
            }
        });
        if (rc != 0) {
            return rc;
        }
        lap(s.stats.us_stage2);
    }

    deep.insert(deep.end(), go.begin(), go.end());
    if (moment == when::before_question && asks_deep) {
        wait.insert(wait.end(), deep.begin(), deep.end());
        deep.clear();
    }
    if (three && !deep.empty()) {
        // prompt order; tokens of an M-RoPE picture share their first position
        std::sort(deep.begin(), deep.end(), [](const row & a, const row & b) {
            return std::tie(a.pos[0], a.image, a.index) < std::tie(b.pos[0], b.image, b.index);
        });
        const std::vector<uint8_t> active = choose_stage3(s, query, deep);
        lap(s.stats.us_select);

        // Frozen K and V first: the others see them. A non-causal picture is done before what follows is in the cache,
        // as it has no mask to hide that.
        for (size_t i = 0; i < deep.size();) {
            std::vector<row> moving, frozen;
            const size_t first = i;
            for (; i < deep.size() && deep[i].group == deep[first].group; ++i) {
                (active[i] ? moving : frozen).push_back(deep[i]);
            }
            if (p.ssr_rest == HALFV_REST_FROZEN) {
                s.stats.flops_spent += cost.kv_only(bounds[2], bounds[3], frozen.size());
                if (const int rc = run(steps_of(seq_id, frozen, s.hidden, { bounds[2], bounds[3], true }), nullptr)) {
                    return rc;
                }
                lap(s.stats.us_frozen);
            }
            s.stats.flops_spent += cost.span(bounds[2], bounds[3], moving.size(), memory.n_cells(2, seq_id));
            auto steps = steps_of(seq_id, moving, s.hidden, { bounds[2] });
            if (last && i == deep.size()) { // outputs are asked of the end of the prompt
                for (auto & step : steps) { last->push_back(std::move(step)); }
            } else if (const int rc = run(std::move(steps), nullptr)) {
                return rc;
            }
            lap(s.stats.us_stage3);
        }
    }

    for (auto & im : s.images) {
        im.closed = true;
        if (moment == when::question) { im.settled = true; } else { im.covered = true; }
        std::sort(im.kept.begin(), im.kept.end());
        std::sort(im.deep.begin(), im.deep.end());
    }
    store(s, pruned);
    s.rows = std::move(wait);
    if (moment == when::question) {
        s.new_question = false;
    }
    return 0;
}

void prefill::settle_waiting() {
    const auto seq_ids = memory.waiting();
    if (seq_ids.empty()) {
        return;
    }
    try {
        ctx.sched_reserve();
        ctx.memory_update(false);

        stopped = false;
        staged_memory::transaction transaction(memory, seq_ids);
        int rc = 0;
        for (size_t i = 0; i < seq_ids.size() && rc == 0; ++i) {
            rc = settle(seq_ids[i], when::question, nullptr);
        }
        if (rc == 0) {
            transaction.commit();
            return;
        }
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: HalfV: %s\n", __func__, err.what());
    }
    LLAMA_LOG_WARN("%s: HalfV: tokens that wait could not go on before the adapters changed; they will go on with the new ones\n", __func__);
}

void prefill::before_control_vector(const float * data, size_t len, int32_t n_embd, int32_t il_start, int32_t il_end) {
    if (data && n_embd != (int32_t) ctx.model.hparams.n_embd) {
        return; // will be refused
    }
    decltype(control_vector) next;
    if (data) {
        next = { { data, data + len }, il_start, il_end };
    }
    auto & now = control_vector;
    if (next.il_start != now.il_start || next.il_end != now.il_end || next.data != now.data) {
        settle_waiting();
        now = std::move(next);
    }
}

int32_t prefill::prepare(llama_seq_id seq_id) {
    const auto * s = memory.find(seq_id);
    const auto is_new = [&](const row & r) { return !r.deep && (r.image < 0 || !s->images[r.image].covered); };
    if (!s || std::none_of(s->rows.begin(), s->rows.end(), is_new) || !prunes_now() || choice != HALFV_CHOICE_HALFV) {
        return HALFV_NOTHING;
    }
    ctx.sched_reserve();
    ctx.memory_update(false);

    stopped = false;
    staged_memory::transaction transaction(memory, { seq_id });
    switch (settle(seq_id, when::before_question, nullptr)) {
        case  0: transaction.commit(); return HALFV_OK;
        case  1:
        case -2: return HALFV_ERR_MEMORY;
        default: return HALFV_ERR_COMPUTE;
    }
}

} // namespace halfv
