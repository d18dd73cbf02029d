// Which tokens go on: applies halfv-selection to the rows of a sequence.

#include "halfv-cut.h"
#include "halfv-prefill.h"
#include "halfv-selection.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace halfv {

std::vector<float> prefill::values_of(const state_ref & ref) const {
    std::vector<float> res;
    if (ref) {
        if (ref.on_device()) { wait_for_device(); }
        ref.read(res);
    }
    return res;
}

// Text behind the last picture, or the last token alone, which stands for a question that is gone or was never there.
prefill::asking prefill::who_asks(const sequence & s) const {
    asking res;
    for (auto r = s.rows.rbegin(); asks_with_all() && r != s.rows.rend() && r->image < 0; ++r) {
        if (r->query && r->first_key) {
            res.queries.push_back(r->query);
            res.keys.push_back(r->first_key);
        }
    }
    std::reverse(res.queries.begin(), res.queries.end());
    std::reverse(res.keys.begin(), res.keys.end());
    if (res.queries.empty() && s.query) { res.queries.push_back(s.query); }
    return res;
}

float prefill::scale_of_attention() const {
    const auto & hparams = ctx.model.hparams;
    return hparams.f_attention_scale != 0.0f ? hparams.f_attention_scale : 1.0f/std::sqrt((float) hparams.n_embd_head_k(memory.asked[0]));
}

static bool all_on_device(const std::vector<state_ref> & refs) {
    return std::all_of(refs.begin(), refs.end(), [](const state_ref & ref) { return ref.on_device(); });
}

// One query: its scores of `rows`. A question's tokens: what they look at, as the layer has it, from the picture on; summed.
std::vector<float> prefill::score(const state_stores & stores, const std::vector<row> & rows, const asking & who) {
    const auto & hparams = ctx.model.hparams;
    const int32_t il = memory.asked[0];
    const int n = rows.size(), n_head = hparams.n_head(il), n_head_kv = hparams.n_head_kv(il), n_head_embd = hparams.n_embd_head_k(il);
    std::vector<float> sums(n);
    if (n == 0) {
        return sums;
    }
    auto keys = refs_of(rows, &row::key);
    keys.insert(keys.end(), who.keys.begin(), who.keys.end());
    const int n_keys = keys.size();
    const float scale = who.keys.empty() ? 1.0f : scale_of_attention();
    std::vector<float> one(n_keys), dots, by_head;
    const auto n_seen  = [&](size_t query) { return who.keys.empty() ? n : n + (int) query + 1; };
    const auto take_in = [&]() { std::transform(sums.begin(), sums.end(), one.begin(), sums.begin(), std::plus<float>()); };

    bool done = all_on_device(who.queries) && all_on_device(keys);
    for (size_t at = 0; at < who.queries.size() && done; at += dots_queries) {
        const std::vector<state_ref> some(who.queries.begin() + at, who.queries.begin() + std::min(who.queries.size(), at + dots_queries));
        const size_t n_all = some.size()*n_head;
        dots.resize(n_all*n_keys);
        done = run(dots_graph(stores.keys, stores.queries, some, n_keys, n_head, n_head_kv), stores.keys, keys, dots.data());
        for (size_t q = 0; q < some.size() && done; ++q) {
            const int seen = n_seen(at + q);
            by_head.resize((size_t) n_head*seen);
            for (int first = 0; first < seen; first += dots_stripe) {
                const int width = std::min(dots_stripe, n_keys - first);
                for (int h = 0; h < n_head; ++h) {
                    const float * from = dots.data() + n_all*first + (q*n_head + h)*width;
                    std::transform(from, from + std::min(width, seen - first), by_head.data() + (size_t) h*seen + first, [&](float x) { return x*(dots_scale*scale); });
                }
            }
            scores_of_dots(by_head.data(), seen, n_head, one.data());
            take_in();
        }
    }
    if (done) {
        return sums;
    }

    std::fill(sums.begin(), sums.end(), 0.0f);
    std::vector<float> values((size_t) n_keys*memory.n_key);
    wait_for_device(); // some may be there
    state_store::read(keys, values.data());
    for (size_t q = 0; q < who.queries.size(); ++q) {
        auto query = values_of(who.queries[q]);
        for (auto & x : query) { x *= scale; }
        visual_scores(query.data(), values.data(), memory.n_key, n_seen(q), n_head, n_head_kv, n_head_embd, one.data());
        take_in();
    }
    return sums;
}

std::vector<float> prefill::score(const std::vector<row> & rows, const std::vector<float> & query) const {
    std::vector<float> res(rows.size()), keys(rows.size()*memory.n_key);
    if (!rows.empty()) {
        const auto & hparams = ctx.model.hparams;
        const int32_t il = memory.asked[0];
        state_store::read(refs_of(rows, &row::key), keys.data());
        visual_scores(query.data(), keys.data(), memory.n_key, rows.size(), hparams.n_head(il), hparams.n_head_kv(il), hparams.n_embd_head_k(il), res.data());
    }
    return res;
}

const std::vector<float> & prefill::final_norm() {
    if (output_norm.empty()) {
        output_norm.resize(ctx.model.hparams.n_embd, 1.0f);
        if (const auto * norm = ctx.model.output_norm) { // some norms have no weights
            ggml_backend_tensor_get(norm, output_norm.data(), 0, output_norm.size()*sizeof(float));
        }
    }
    return output_norm;
}

void prefill::make_features(std::vector<float> & states) {
    const auto & model = ctx.model;
    const int d = model.hparams.n_embd, n = states.size()/d;
    if (!cuts_of(model).centred) {
        final_norm_features(states.data(), final_norm().data(), n, d, states.data());
        return;
    }
    std::vector<float> bias(model.output_norm_b ? d : 0);
    if (!bias.empty()) { ggml_backend_tensor_get(model.output_norm_b, bias.data(), 0, d*sizeof(float)); }
    for (int i = 0; i < n; ++i) {
        layer_norm(states.data() + (size_t) i*d, final_norm().data(), bias.empty() ? nullptr : bias.data(), d, model.hparams.f_norm_eps);
    }
    final_norm_features(states.data(), nullptr, n, d, states.data());
}

// as many as the client gives to batches
worker_pool & prefill::cover_workers() {
    const int n = std::min(ctx.cparams.n_threads_batch, cover_workers_max);
    if (!workers || n != n_workers) {
        workers.emplace(n);
        n_workers = n;
    }
    return *workers;
}

// of the states that leave stage I
std::vector<float> prefill::features_of(const std::vector<row> & rows) {
    const int n = rows.size(), d = ctx.model.hparams.n_embd;
    std::vector<float> state, features((size_t) n*d);
    for (int i = 0; i < n; ++i) {
        rows[i].first.read(state);
        std::copy_n(state.begin(), d, features.begin() + (size_t) i*d);
    }
    make_features(features);
    return features;
}

std::vector<int32_t> prefill::cover(const std::vector<row> & rows, const std::vector<int32_t> & anchors, int k) {
    const int n = rows.size(), d = ctx.model.hparams.n_embd;
    if (n == 0 || k <= 0) {
        return anchors;
    }
    if (on_device(rows) && !cuts_of(ctx.model).centred) {
        const auto & hidden = memory.stores[0].hidden;
        std::vector<int32_t> res;
        for (const auto & group : cover_groups(n, anchors, k)) {
            const std::vector<row> members(rows.begin() + group.first, rows.begin() + group.first + group.count);
            if (!run(similarities_graph(hidden, d, group.count), hidden, refs_of(members, &row::hidden), gram)) {
                break;
            }
            const auto layout = similarities_layout(group.count);
            clear_broken(gram, layout);
            for (const int32_t i : cover_gram(gram, layout, group.anchors, group.k)) { res.push_back(group.first + i); }
            if (group.first + group.count == n) {
                return res;
            }
        }
        wait_for_device();
    }
    const auto features = features_of(rows);
    return halfv::cover(features.data(), n, d, anchors, k, &cover_workers(), [this]() { return aborted(); });
}

// What the chosen among these rows stand for from a stage on, where attention is to know. Tokens that join a picture later stand
// for themselves alone, and leave what the others stand for as it is, so that they can be taken out again.
void prefill::count(sequence & s, image & im, int stage, const std::vector<row> & rows, const std::vector<int32_t> & chosen) {
    if (memory.profile.ivr_bias <= 0.0f || chosen.empty()) {
        return;
    }
    if (stage == 1) {
        im.places.assign(im.n(), {});
        for (const auto & r : rows) { im.places[r.index] = { r.pos[1], r.pos[2] }; }
    }
    std::vector<uint32_t> counts;
    for (const auto & r : rows) { counts.push_back(stage == 1 ? 1 : std::max(1u, im.stands_for[stage - 2][r.index])); }
    wait_for_device(); // some may be there
    counts = stand_for(features_of(rows).data(), rows.size(), ctx.model.hparams.n_embd, chosen, counts, &cover_workers());
    s.stats.flops_spent += cost.count(rows.size(), chosen.size());
    im.stands_for[stage - 1].assign(im.n(), 0);
    for (size_t i = 0; i < rows.size(); ++i) { im.stands_for[stage - 1][rows[i].index] = counts[i]; }
}

// Anchors of a picture that is in already, prepared or asked about: few, as they are what the person waits for after Enter.
static int late_anchors(int n, int n_anchors) {
    constexpr int   least = 8;
    constexpr float share = 0.025f;
    return std::min(n_anchors, std::max(least, quota(n, share)));
}

void prefill::choose_stage2(sequence & s, when moment, std::vector<row> & go, std::vector<row> & wait, std::vector<row> & recalled) {
    const auto & p = memory.profile;
    const size_t fits = first_that_fits(s);
    const asking who = who_asks(s);

    // 1: goes on; 2: stays pending; 3: pruned
    std::vector<uint8_t> fate(s.rows.size(), 1);
    if (moment == when::before_question) { std::fill(fate.begin() + n_to_prepare(s), fate.end(), 2); }

    std::vector<std::vector<size_t>> members(s.images.size());
    for (size_t i = 0; i < s.rows.size(); ++i) {
        if (s.rows[i].image >= 0 && s.rows[i].stage == 1) { members[s.rows[i].image].push_back(i); }
    }
    for (size_t i = 0; i < s.images.size(); ++i) {
        auto & im = s.images[i];
        if (members[i].empty()) {
            continue;
        }
        if (!applies(im)) {
            report(im, prunes_now() ? HALFV_REASON_SMALL : HALFV_REASON_DISABLED);
        } else if (!im.covered && members[i][0] < fits) {
            report(im, HALFV_REASON_BUDGET);
        } else if (moment == when::question && !s.query) {
            report(im, HALFV_REASON_UNASKED);
        } else if (p.ivr_keep < 1.0f) {
            std::vector<row> rows;
            for (const size_t m : members[i]) { rows.push_back(s.rows[m]); }
            const int n_kept    = std::max(1, quota(im.n(), p.ivr_keep));
            int n_anchors = quota(n_kept, p.ivr_anchors);
            if (moment == when::before_question || im.covered) {
                n_anchors = late_anchors(im.n(), n_anchors);
            }

            std::vector<int32_t> chosen;
            if (choice != HALFV_CHOICE_HALFV) {
                chosen = choose_otherwise(s, s.rows, members[i], values_of(s.query), n_kept, 1);
            } else if (moment == when::before_question) {
                if (!im.covered) {
                    chosen = cover(rows, {}, n_kept - n_anchors);
                    s.stats.flops_spent += cost.cover(rows.size(), n_kept - n_anchors);
                }
            } else {
                if (n_anchors > 0) {
                    chosen = top_k(score(memory.stores[0], rows, who).data(), rows.size(), n_anchors);
                    s.stats.flops_spent += who.queries.size()*cost.scores(rows.size(), memory.asked[0]);
                }
                if (!im.covered) {
                    chosen = cover(rows, chosen, n_kept);
                    s.stats.flops_spent += cost.cover(rows.size(), n_kept);
                }
            }
            if (!im.covered) { count(s, im, 1, rows, chosen); }
            for (const size_t m : members[i]) { fate[m] = moment == when::question ? 3 : 2; }
            for (const int32_t c : chosen)    { fate[members[i][c]] = 1; }
        }
        for (const size_t m : members[i]) {
            if (fate[m] == 1) { im.reached[0].push_back(s.rows[m].index); }
        }
    }

    if (moment == when::question && s.new_question && s.query && fits == 0) {
        go = recalled = recall(s);
    }
    for (size_t i = 0; i < s.rows.size(); ++i) {
        if (s.rows[i].stage == 1 && fate[i] < 3) {
            (fate[i] == 1 ? go : wait).push_back(s.rows[i]);
        }
    }
}

bool prefill::thins(const image & im, int stage) const {
    return share_of_stage(memory.profile, stage) < 1.0f && applies(im) && im.reason == HALFV_REASON_NONE;
}

bool prefill::asks_for(int stage) const {
    return stage < n_stages && memory.has_stage(stage) && prunes_now() && is_chosen(share_of_stage(memory.profile, stage));
}

// which of these rows a stage updates, from stage III on
std::vector<uint8_t> prefill::choose_later(sequence & s, int stage, const state_ref & query, const std::vector<row> & deep) {
    std::vector<uint8_t> stays(deep.size(), 1);

    std::vector<std::vector<size_t>> members(s.images.size());
    for (size_t i = 0; i < deep.size(); ++i) {
        if (deep[i].image >= 0) { members[deep[i].image].push_back(i); }
    }
    for (size_t i = 0; i < s.images.size(); ++i) {
        auto & im = s.images[i];
        const bool stays_frozen = stage == 2 && memory.profile.ssr_rest == HALFV_REST_FROZEN;
        if (!im.settled && !members[i].empty()) { im.stands_for[stage - 1] = im.stands_for[stage - 2]; } // until some of them leave
        if (thins(im, stage) && !members[i].empty()) {
            std::vector<row> rows;
            for (const size_t m : members[i]) {
                rows.push_back(deep[m]);
                stays[m] = 0;
            }
            const int n_deep = quota(im.n(), share_of_stage(memory.profile, stage));
            std::vector<int32_t> chosen;
            if (n_deep > 0 && choice != HALFV_CHOICE_HALFV) {
                chosen = choose_otherwise(s, deep, members[i], values_of(query), n_deep, stage);
            } else if (n_deep > 0) {
                chosen = top_k(score(memory.stores[stage - 1], rows, { { query }, {} }).data(), rows.size(), n_deep);
                s.stats.flops_spent += cost.scores(rows.size(), memory.asked[stage - 1]);
            }
            for (const int32_t c : chosen) { stays[members[i][c]] = 1; }
            if (!im.settled && !stays_frozen && !im.places.empty()) { count(s, im, stage, rows, chosen); }
        }
        for (const size_t m : members[i]) {
            if (stays[m]) { im.reached[stage - 1].push_back(deep[m].index); }
        }
    }
    return stays;
}

//
// undoing and top-up
//

// From this row on, the states that undoing takes fit. They are needed from the first pruned picture to the end of its
// question, so pictures before this row go on whole.
size_t prefill::first_that_fits(const sequence & s) const {
    if (!memory.undoes) {
        return 0;
    }
    const uint64_t used = memory.undo_bytes();
    uint64_t room = memory.undo_limit - std::min(memory.undo_limit, used);
    size_t first = s.rows.size();
    while (first > 0 && memory.undo_bytes(s.rows[first - 1]) <= room) { room -= memory.undo_bytes(s.rows[--first]); }
    return first;
}

// The text of a question may be longer than what was left when its picture was prepared. The picture then goes on whole, like
// any that does not fit, and so has to wait again. Comes before a batch changes anything.
void prefill::unprepare_what_will_not_fit(llama_seq_id seq_id, size_t n_text) {
    const auto * s = memory.find(seq_id);
    if (!memory.undoes || !s) {
        return;
    }
    const auto covered = [&](const row & r) { return r.image >= 0 && s->images[r.image].covered; };
    const auto first = std::find_if(s->rows.begin(), s->rows.end(), covered);
    if (first == s->rows.end()) {
        return;
    }
    const auto & stores = memory.stores[0];
    uint64_t bytes = n_text*(stores.hidden.width + (asks_with_all() ? stores.queries.width + memory.n_key : 0))*sizeof(float);
    for (auto r = first; r != s->rows.end(); ++r) { bytes += memory.undo_bytes(*r); }
    if (memory.undo_bytes() + bytes > memory.undo_limit) {
        memory.unprepare(seq_id);
    }
}

// Where every question prepares its pictures, one that goes on without a question was not prepared in a fresh context.
void prefill::unprepare_what_nobody_asks(llama_seq_id seq_id) {
    const auto * s = memory.find(seq_id);
    if (memory.prepares && s && !s->rows.empty() && s->rows.back().image >= 0) { memory.unprepare(seq_id); }
}

// A picture that was prepared for a question that is gone, and now turns out to have more tokens.
void prefill::unprepare_what_goes_on(llama_seq_id seq_id) {
    const auto * s = memory.find(seq_id);
    if (s && !new_image && !s->images.empty() && !s->images.back().closed && s->images.back().covered) { memory.unprepare(seq_id); }
}

// Where nothing is undone, states are only for top-up: the oldest give way.
void prefill::keep_turn(sequence & s, turn t) {
    if (!memory.undoes) {
        uint64_t bytes = 0;
        for (const auto & r : t.rows) { bytes += memory.undo_bytes(r); }
        while (!s.turns.empty() && memory.undo_bytes() + bytes > memory.undo_limit) { s.turns.erase(s.turns.begin()); }
        if (memory.undo_bytes() + bytes > memory.undo_limit) {
            return;
        }
    }
    s.turns.push_back(std::move(t));
    memory.keep_within_limit();
}

// the pruned tokens that matter most to a new question, as rows that have been through stage I
std::vector<row> prefill::recall(sequence & s) {
    std::vector<row> res;
    const asking who = who_asks(s);
    for (size_t i = 0; i < s.images.size(); ++i) {
        auto & im = s.images[i];
        std::vector<row> rows;
        s.each_stored(i, [&](const row & stored) {
            row r = stored;
            r.group = -1; // alone, later: causal
            rows.push_back(r);
        });
        const auto & p = memory.profile;
        const int n_anchors = late_anchors(im.n(), quota(std::max(1, quota(im.n(), p.ivr_keep)), p.ivr_anchors));
        for (const int32_t c : top_k(score(memory.stores[0], rows, who).data(), rows.size(), n_anchors)) {
            im.reached[0].push_back(rows[c].index);
            res.push_back(rows[c]);
        }
        s.stats.flops_spent += who.queries.size()*cost.scores(rows.size(), memory.asked[0]);
    }
    return res;
}

} // namespace halfv
