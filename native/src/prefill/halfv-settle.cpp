// Stage I of what is lazy, and the later stages once the question is there.

#include "halfv-neighbours.h"
#include "halfv-prefill.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <string_view>

namespace halfv {

int prefill::stage1(const share & part, bool visual) {
    const auto & bounds  = memory.bounds;
    const llama_batch & batch = ctx.balloc->get_batch();
    const int64_t t_start = ggml_time_us();
    const bool keeps_keys = visual || wants_attention() || asks_with_all();
    const bool all_ask = wants_queries() || (asks_with_all() && !visual);
    const graph_pass pass = { bounds[0], bounds[1], INT32_MAX, memory.asked[0], wants_rotated(), all_ask };

    const auto gives = room_for(pass, std::vector<bool>(part.idxs.size(), keeps_keys));
    std::vector<step> steps;
    for (size_t i = 0; i < part.idxs.size(); i += ctx.cparams.n_ubatch) {
        const auto end = std::min(part.idxs.size(), i + ctx.cparams.n_ubatch);
        steps.push_back({ ubatch_of_batch(batch, { part.idxs.begin() + i, part.idxs.begin() + end }, 1), pass });
        steps.back().io = gives.rows(i, end);
    }

    auto & s = memory.at(part.seq_id);
    const uint64_t before = memory.n_cells(0, part.seq_id);
    const uint64_t n_all  = part.idxs.size();
    const int32_t  group  = ctx.cparams.causal_attn ? -1 : next_group(s.rows);

    if (visual) {
        const bool follows = !s.images.empty() && !s.images.back().closed && !new_image &&
                             !s.rows.empty() && s.rows.back().image == (int32_t) s.images.size() - 1;
        if (!follows) {
            s.images.emplace_back();
        }
    }

    size_t done = 0;
    const int rc = run(std::move(steps), [&](const llama_ubatch & ubatch, const llm_graph_result & res) {
        const uint32_t n = ubatch.n_tokens;
        bring_down(res, gives, done, done + n);
        for (uint32_t i = 0; i < n; ++i, ++done) {
            row r = {};
            for (uint32_t j = 0; j < ubatch.n_pos; ++j) {
                r.pos[j] = ubatch.pos[j*n + i];
            }
            if (ubatch.token) {
                r.pos[3] = 0; // as llm_graph_input_pos does for text
            }
            r.image     = -1;
            r.index     = -1;
            r.token     = ubatch.token ? ubatch.token[i] : LLAMA_TOKEN_NULL;
            if (visual) {
                auto & im = s.images.back();
                r.image = s.images.size() - 1;
                r.index = im.n();
                im.positions.push_back(r.pos[0]);
            }
            r.first     = r.hidden = gives.hidden[done];
            r.first_key = r.key    = gives.keys[done];
            if (all_ask) { r.query = gives.queries[done]; }
            r.stage     = 1;
            r.group     = group;
            r.batch_idx = ubatch.data->batch_idxs[i];
            r.output    = ubatch.output[i];
            s.rows.push_back(r);
        }
    });

    s.query = gives.last_query();
    s.stats.us_stage1   += ggml_time_us() - t_start;
    s.stats.flops_dense += cost.span(bounds[0], bounds[n_stages], n_all, before);
    s.stats.flops_spent += cost.span(bounds[0], bounds[1],        n_all, before);
    return rc;
}

// Where no batch asks, the last token of text that waits stands for the question. The query at hand may be of a token that
// was removed since; then stage I runs for this one again, and leaves its cell as it is.
int prefill::ask_by_last_text(llama_seq_id seq_id, sequence & s) {
    if (s.rows.empty() || s.rows.back().token == LLAMA_TOKEN_NULL) {
        s.query = {};
        return 0;
    }
    if (!s.query) { s.query = s.rows.back().query; }
    if (s.query || memory.recurs()) { // a recurrent state has no way back to before this token
        return 0;
    }
    const auto & bounds = memory.bounds;
    const row & r = s.rows.back();
    const staged_memory::rehearsal rehearsal(memory, seq_id, r.pos.data());
    const graph_pass pass = { bounds[0], bounds[1], INT32_MAX, memory.asked[0], wants_rotated() };
    const auto gives = room_for(pass, { false });
    step step = { ubatch_of_token(seq_id, r), pass };
    step.io = gives.rows(0, 1);
    const int rc = run({ std::move(step) }, [&](const llama_ubatch &, const llm_graph_result & res) {
        bring_down(res, gives, 0, 1);
    });
    s.query = gives.last_query();
    return rc;
}

// Of the last layer of stage II, tokens that stage III drops have only K and V to give. What the choice asks for is there
// before attention, so it may be made before the rest of that layer, which is then left to those that stay.
bool prefill::may_split() const {
    const int32_t il = memory.bounds[2] - 1;
    return memory.has_stage(2) && il > memory.bounds[1] && memory.profile.ssr_rest == HALFV_REST_DROPPED && memory.attends(il) && !memory.recurs(il);
}

bool prefill::splits(const std::vector<image> & images, const std::vector<row> & go) const {
    return may_split() && memory.profile.ssr_update < memory.profile.ivr_keep &&
           std::any_of(go.begin(), go.end(), [&](const row & r) { return r.image >= 0 && thins(images[r.image], 2); }) &&
           std::all_of(go.begin(), go.end(), [](const row & r) { return r.group < 0; });
}

prefill::settings_of::settings_of(prefill & all, llama_seq_id seq_id) :
    all(all), enabled(all.enabled), keep(all.memory.profile.ivr_keep) {
    const auto found = all.own.find(seq_id);
    if (found != all.own.end()) {
        all.enabled = enabled && found->second.enabled;
        all.memory.profile.ivr_keep = found->second.keep > 0.0f ? found->second.keep : keep;
    }
}

prefill::settings_of::~settings_of() {
    all.enabled = enabled;
    all.memory.profile.ivr_keep = keep;
}

// Visual tokens of a picture that is pruned, but under adapters, which know the whole networks.
bool prefill::is_narrow(const sequence & s, const row & r) const {
    return narrows(memory.profile) && r.image >= 0 && applies(s.images[r.image]) && s.images[r.image].reason == HALFV_REASON_NONE && ctx.loras->empty();
}

static uint64_t n_narrow(const std::vector<row> & rows) {
    return std::count_if(rows.begin(), rows.end(), [](const row & r) { return r.narrow; });
}

// `are_in`: these rows have cells in that stage already, and see the others there.
narrow_tokens prefill::narrow_of(llama_seq_id seq_id, int stage, const std::vector<row> & rows, bool are_in) const {
    narrow_tokens res;
    if (n_narrow(rows) == 0) {
        return res;
    }
    auto before = memory.cells_by_picture(stage, seq_id);
    const picture_places places(memory.find(seq_id), ctx.model.hparams.n_pos_per_embd() > 1);
    uint64_t n_before = 0;
    for (const auto & r : rows) { before[r.narrow ? r.image : -1] -= are_in; }
    for (const auto & [image, n] : before) { n_before += n; }
    for (const auto & r : rows) {
        const uint64_t n_of_picture = ++before[r.narrow ? r.image : -1], n_seen = ++n_before;
        if (r.narrow) {
            const bool has_grid = r.group < 0 && places.at(r.pos[0], r.pos[1], r.pos[2]).row >= 0;
            res.add(n_seen, r.group < 0 ? before[-1] + (has_grid ? std::min(n_of_picture, neighbours_of(memory.profile.neighbours_width)) : n_of_picture) : n_seen);
        }
    }
    return res;
}

// A pass that another follows: rows get the states that it gives and, where it is tapped, their keys; `query` is its last token's.
int prefill::run_on(llama_seq_id seq_id, std::vector<row> & rows, const std::vector<row> & fed, const graph_pass & pass, state_ref & query) {
    const bool asked = pass.tap >= 0;
    std::vector<bool> has_key;
    for (const auto & r : rows) { has_key.push_back(asked && (r.image >= 0 || wants_attention())); }
    const auto gives = room_for(pass, has_key);
    size_t done = 0;
    const int rc = run(steps_of(seq_id, fed, pass, &gives), [&](const llama_ubatch & ubatch, const llm_graph_result & res) {
        bring_down(res, gives, done, done + ubatch.n_tokens);
        done += ubatch.n_tokens;
    });
    for (size_t i = 0; i < rows.size() && rc == 0; ++i) {
        rows[i].hidden = gives.hidden[i];
        if (gives.keys[i]) { rows[i].key = gives.keys[i]; }
        if (asked && pass.all_ask) { rows[i].query = gives.queries[i]; }
    }
    query = gives.last_query();
    return rc;
}

// Stage III and those behind it: where each begins its picture's tokens are chosen among those that came so far.
int prefill::later_stages(llama_seq_id seq_id, sequence & s, state_ref query, std::vector<row> rows, bool split, std::vector<step> * last) {
    const auto & bounds = memory.bounds;
    int64_t t_start = ggml_time_us();
    const auto lap = [&](int64_t & total) { const int64_t now = ggml_time_us(); total += now - t_start; t_start = now; };

    for (int stage = 2; stage < n_stages && memory.has_stage(stage); ++stage) {
        const std::vector<uint8_t> active = choose_later(s, stage, query, rows);
        lap(s.stats.us_select);

        const bool goes_on = stage + 1 < n_stages && memory.has_stage(stage + 1);
        const int32_t begin = bounds[stage] - (split && stage == 2);
        const graph_pass pass = { begin, goes_on ? bounds[stage + 1] : INT32_MAX, INT32_MAX, asks_for(stage + 1) ? memory.asked[stage] : -1, true, wants_queries() };
        std::vector<row> through;

        // Frozen K and V first: the others see them. A non-causal picture is done before what follows is in the cache,
        // as it has no mask to hide that.
        for (size_t i = 0; i < rows.size();) {
            std::vector<row> moving, frozen;
            const size_t first = i;
            for (; i < rows.size() && rows[i].group == rows[first].group; ++i) {
                (active[i] ? moving : frozen).push_back(rows[i]);
            }
            if (stage == 2 && memory.profile.ssr_rest == HALFV_REST_FROZEN) {
                s.stats.flops_spent += cost.kv_only(memory.profile, bounds[2], bounds[3], frozen.size(), n_narrow(frozen));
                if (const int rc = run(steps_of(seq_id, frozen, { bounds[2], bounds[3], bounds[2] }), nullptr)) {
                    return rc;
                }
                lap(s.stats.us_frozen);
            }
            s.stats.flops_spent += cost.span(bounds[stage], bounds[stage + 1], moving.size(), memory.n_cells(stage, seq_id)) -
                                   cost.narrowed(memory.profile, bounds[stage], bounds[stage + 1], narrow_of(seq_id, stage, moving, false));
            if (begin < bounds[stage]) { // counted as if they came last
                s.stats.flops_spent += cost.span(begin, bounds[2], moving.size(), memory.n_cells(1, seq_id) - moving.size()) -
                                       cost.narrowed(memory.profile, begin, bounds[2], narrow_of(seq_id, 1, moving, true));
            }
            if (goes_on) {
                if (const int rc = run_on(seq_id, moving, moving, pass, query)) {
                    return rc;
                }
                for (auto & r : moving) {
                    r.cell = -1;
                    through.push_back(r);
                }
            } else {
                auto steps = steps_of(seq_id, moving, pass);
                if (last && i == rows.size()) { // outputs are asked of the end of the prompt
                    for (auto & step : steps) { last->push_back(std::move(step)); }
                } else if (const int rc = run(std::move(steps), nullptr)) {
                    return rc;
                }
            }
            lap(s.stats.us_stage3);
        }
        rows = std::move(through);
    }
    return 0;
}

// Carries a sequence's pending tokens through the later stages. The last pass goes to `last` when that is given.
// Before the question only what needs none is done; the rest stays pending.
int prefill::settle(llama_seq_id seq_id, when moment, std::vector<step> * last) {
    const settings_of in_force(*this, seq_id);
    const auto & bounds = memory.bounds;
    const bool three     = memory.has_stage(2);
    const bool asks_deep = asks_for(2); // stage III needs the question
    bool asks_later = false; // it or one behind it does
    for (int stage = 2; stage < n_stages; ++stage) { asks_later = asks_later || asks_for(stage); }
    auto & s = memory.at(seq_id);
    memory.keep_lists(seq_id);
    if (moment == when::question) {
        const int rc_asked = last ? 0 : ask_by_last_text(seq_id, s);
        const int rc = rc_asked == 0 && memory.prepares && s.query && can_prepare(s) ? settle(seq_id, when::before_question, nullptr) : rc_asked;
        if (rc != 0) {
            return rc;
        }

        // what this batch asked for
        uint64_t n_outputs = 0;
        for (const auto & r : s.rows) { n_outputs += r.output; }
        s.stats.flops_dense += cost.outputs(n_outputs);
        s.stats.flops_spent += cost.outputs(n_outputs);
    }

    int64_t t_start = ggml_time_us();
    const auto lap = [&](int64_t & total) { const int64_t now = ggml_time_us(); total += now - t_start; t_start = now; };

    std::vector<row> go, wait, recalled;
    choose_stage2(s, moment, go, wait, recalled);
    if (stopped) {
        return 2;
    }
    lap(s.stats.us_select);

    // rows that went through stage II before the question, then those of now
    std::vector<row> deep;
    for (const auto & r : s.rows) {
        if (r.stage == 2) { deep.push_back(r); }
    }
    for (auto * rows : { &go, &deep }) {
        for (auto & r : *rows) {
            r.narrow = is_narrow(s, r);
            if (r.narrow) { s.images[r.image].narrow = true; }
        }
    }

    const bool split = moment == when::question && deep.empty() && splits(s.images, go); // what was prepared is through already
    const int32_t begin3 = bounds[2] - split;
    s.stats.flops_spent += cost.span(bounds[1], begin3, go.size(), memory.n_cells(1, seq_id)) -
                           cost.narrowed(memory.profile, bounds[1], begin3, narrow_of(seq_id, 1, go, false));
    if (split) {
        s.stats.flops_spent += cost.kv_only(memory.profile, begin3, bounds[2], go.size(), n_narrow(go)) +
                               (asks_deep ? cost.queries(memory.profile, begin3, go.size(), n_narrow(go)) : 0);
    }
    const graph_pass pass2 = { bounds[1], three ? bounds[2] : INT32_MAX, split ? begin3 : INT32_MAX, asks_deep ? memory.asked[1] : -1, true, wants_queries() };
    state_ref query;

    // anchors that join a non-causal picture after the question must not see what followed it: they go causally
    auto fed = go;
    for (auto & r : fed) {
        if (r.image >= 0 && s.images[r.image].covered) { r.group = -1; }
    }
    if (!three) {
        auto steps = steps_of(seq_id, fed, pass2);
        if (last) {
            for (auto & step : steps) { last->push_back(std::move(step)); }
        } else if (const int rc = run(std::move(steps), nullptr)) {
            return rc;
        }
        lap(s.stats.us_stage2);
    } else {
        if (const int rc = run_on(seq_id, go, fed, pass2, query)) {
            return rc;
        }
        for (auto & r : go) { r.stage = 2; }
        if (split) {
            const auto cells = memory.last_cells(1, go.size());
            for (size_t i = 0; i < go.size(); ++i) { go[i].cell = cells[i]; }
        }
        lap(s.stats.us_stage2);
    }

    deep.insert(deep.end(), go.begin(), go.end());
    if (moment == when::before_question) {
        for (auto & r : deep) {
            wait.push_back(r);
            if (!asks_later) { wait.back().stage = 3; }
        }
        for (const auto & r : s.rows) {
            if (r.stage == 3) { wait.push_back(r); }
        }
        if (asks_later) { deep.clear(); }
    }
    if (three && !deep.empty()) {
        std::sort(deep.begin(), deep.end(), prompt_order); // tokens of an M-RoPE picture share their first position
        if (const int rc = later_stages(seq_id, s, query, std::move(deep), split, last)) {
            return rc;
        }
    }

    // what this question, or this preparation, has decided over and may have to be undone; the rest is done for good
    if (moment == when::question) {
        const size_t open = first_open(s.rows, s.images, first_that_fits(s));
        if ((open < s.rows.size() || !recalled.empty()) && !memory.recurs()) {
            turn t;
            const bool stays_prepared = memory.prepares && memory.undoes;
            for (size_t i = recalled.empty() ? open : 0; i < s.rows.size(); ++i) {
                t.rows.push_back(stays_prepared ? as_prepared(s.rows[i]) : as_after_stage1(s.rows[i]));
            }
            for (const auto & r : recalled) { t.recalled.push_back(token_of(r)); }
            t.end      = s.rows.back().pos[0];
            t.by_next  = !last;
            t.adapters = memory.adapters;
            keep_turn(s, std::move(t));
        }
        s.rows.clear();
        s.query = {};
        s.new_question = false;
    } else {
        std::sort(wait.begin(), wait.end(), prompt_order);
        const auto last_done = wait.begin() + first_open(wait, s.images, wait.size());
        wait.erase(std::remove_if(wait.begin(), last_done, [](const row & r) { return r.stage == 3; }), last_done);
        s.rows = std::move(wait);
    }
    for (auto & im : s.images) {
        im.closed = true;
        if (moment == when::question) { im.settled = true; } else { im.covered = true; }
        for (auto & list : im.reached) { std::sort(list.begin(), list.end()); }
    }
    return 0;
}

// Where the first token is of a picture that was, or will be, pruned; or that another question would prune, from `fits` on.
size_t prefill::first_open(const std::vector<row> & rows, const std::vector<image> & images, size_t fits) const {
    size_t i = 0;
    while (i < rows.size() && choice == HALFV_CHOICE_HALFV) {
        if (rows[i].image >= 0) {
            const auto & im = images[rows[i].image];
            const bool another = memory.undoes && i >= fits && (im.reason == HALFV_REASON_DISABLED || im.reason == HALFV_REASON_UNASKED);
            if (is_large(im) && (im.reason == HALFV_REASON_NONE ? prunes_now() : another)) {
                break;
            }
        }
        ++i;
    }
    return i;
}

static uint64_t hash_of(const void * data, size_t size) {
    return std::hash<std::string_view>()({ (const char *) data, size });
}

uint64_t prefill::adapters_in_force() const {
    const auto & cvec = control_vector;
    uint64_t res = 0;
    if (!cvec.data.empty()) {
        const int32_t layers[] = { cvec.il_start, cvec.il_end };
        res = hash_of(cvec.data.data(), cvec.data.size()*sizeof(float)) ^ hash_of(layers, sizeof(layers));
    }
    for (const auto & [adapter, scale] : *ctx.loras) { // in no order
        res += hash_of(&adapter, sizeof(adapter)) ^ hash_of(&scale, sizeof(scale));
    }
    return res;
}

void prefill::note_adapters() {
    if (memory.adapters == staged_memory::changing) { memory.use_adapters(adapters_in_force()); }
}

void prefill::settle_waiting() {
    int rc = 0;
    try {
        note_adapters();
        const auto seq_ids = memory.waiting();
        if (!seq_ids.empty()) {
            ctx.sched_reserve();
            ctx.memory_update(false);
        }
        stopped = false;
        for (const auto id : seq_ids) {
            unprepare_what_will_not_fit(id, 0);
            unprepare_what_nobody_asks(id);
        }
        staged_memory::transaction transaction(memory, seq_ids);
        for (size_t i = 0; i < seq_ids.size() && rc == 0; ++i) {
            rc = settle(seq_ids[i], when::question, nullptr);
        }
        if (rc == 0) {
            transaction.commit();
        }
    } catch (const std::exception & err) {
        LLAMA_LOG_ERROR("%s: HalfV: %s\n", __func__, err.what());
        rc = -3;
    }
    if (rc != 0) {
        LLAMA_LOG_WARN("%s: HalfV: tokens that wait could not go on before the adapters changed; they will go on with the new ones\n", __func__);
    }
    memory.adapters = staged_memory::changing;
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

// Tokens that preparing is about. Where every question prepares its pictures, this ends with the last of them, so that it
// does not matter when the text behind it came.
size_t prefill::n_to_prepare(const sequence & s) const {
    size_t n = s.rows.size();
    while (memory.prepares && n > 0 && s.rows[n - 1].image < 0) { --n; }
    return n;
}

bool prefill::can_prepare(const sequence & s) const {
    const auto is_new = [&](const row & r) { return r.stage == 1 && (r.image < 0 || !s.images[r.image].covered); };
    return std::any_of(s.rows.begin(), s.rows.begin() + n_to_prepare(s), is_new) && prunes_now() && choice == HALFV_CHOICE_HALFV;
}

int32_t prefill::prepare(llama_seq_id seq_id) {
    const auto * s = memory.find(seq_id);
    if (!s || !can_prepare(*s)) {
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
