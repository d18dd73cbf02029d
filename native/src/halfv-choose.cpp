// Which tokens go on: applies halfv-selection to the rows of a sequence.

#include "halfv-gram.h"
#include "halfv-prefill.h"
#include "halfv-selection.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>

namespace halfv {

// the rows' entries in a slab as one block, copied only where they are not one already
template <typename F>
static const float * block(const slab<float> & slab, const std::vector<row> & rows, size_t width, F && slot, std::vector<float> & copy) {
    bool contiguous = width == slab.width;
    for (size_t i = 0; i < rows.size() && contiguous; ++i) {
        contiguous = slot(rows[i]) == slot(rows[0]) + i;
    }
    if (contiguous) {
        return slab.at(slot(rows[0]));
    }
    copy.resize(rows.size()*width);
    for (size_t i = 0; i < rows.size(); ++i) {
        std::copy_n(slab.at(slot(rows[i])), width, copy.data() + i*width);
    }
    return copy.data();
}

std::vector<float> prefill::score(const sequence & s, const std::vector<row> & rows, const std::vector<float> & query) const {
    std::vector<float> res(rows.size()), copy;
    if (!rows.empty()) {
        const auto & hparams = ctx.model.hparams;
        const int32_t il = memory.bounds[1] - 1;
        const float * keys = block(s.keys, rows, memory.n_key, [](const row & r) { return (size_t) r.key; }, copy);
        visual_scores(query.data(), keys, memory.n_key, rows.size(), hparams.n_head(il), hparams.n_head_kv(il), hparams.n_embd_head_k(il), res.data());
    }
    return res;
}

const std::vector<float> & prefill::final_norm() {
    if (output_norm.empty()) {
        output_norm.resize(ctx.model.hparams.n_embd);
        ggml_backend_tensor_get(ctx.model.output_norm, output_norm.data(), 0, output_norm.size()*sizeof(float));
    }
    return output_norm;
}

std::vector<int32_t> prefill::cover(const sequence & s, const std::vector<row> & rows, const std::vector<int32_t> & anchors, int k) {
    const int n = rows.size(), d = ctx.model.hparams.n_embd;
    if (n == 0 || k <= 0) {
        return anchors;
    }
    std::vector<float> copy, features((size_t) n*d);
    const float * hidden = block(s.hidden, rows, d, [](const row & r) { return (size_t) r.hidden; }, copy);
    final_norm_features(hidden, final_norm().data(), n, d, features.data());

    const auto stop = [this]() { return aborted(); };
    if (!device) {
        return halfv::cover(features.data(), n, d, anchors, k, ctx.cparams.n_threads_batch, stop);
    }
    std::vector<int32_t> res;
    std::vector<float> gram;
    for (const auto & group : cover_groups(n, anchors, k)) {
        if (!device_gram(device, features.data() + (size_t) group.first*d, group.count, d, gram)) {
            return halfv::cover(features.data(), n, d, anchors, k, ctx.cparams.n_threads_batch, stop);
        }
        for (const int32_t i : cover_gram(gram.data(), group.count, group.anchors, group.k)) {
            res.push_back(group.first + i);
        }
    }
    return res;
}

// Anchors of a picture that is in already, prepared or asked about: few, as they are what the person waits for after Enter.
static int late_anchors(int n, int n_anchors) {
    constexpr int   least = 8;
    constexpr float share = 0.025f;
    return std::min(n_anchors, std::max(least, quota(n, share)));
}

void prefill::choose_stage2(sequence & s, when moment, std::vector<row> & go, std::vector<row> & wait, std::vector<row> & pruned) {
    const auto & p = memory.profile;

    // 1: goes on; 2: stays pending; 3: pruned
    std::vector<uint8_t> fate(s.rows.size(), 1);

    std::vector<std::vector<size_t>> members(s.images.size());
    for (size_t i = 0; i < s.rows.size(); ++i) {
        if (s.rows[i].image >= 0 && !s.rows[i].deep) { members[s.rows[i].image].push_back(i); }
    }
    for (size_t i = 0; i < s.images.size(); ++i) {
        auto & im = s.images[i];
        if (members[i].empty()) {
            continue;
        }
        if (!applies(im)) {
            report(im, prunes_now() ? HALFV_REASON_SMALL : HALFV_REASON_DISABLED);
        } else if (p.ivr_keep < 1.0f) {
            std::vector<row> rows;
            for (const size_t m : members[i]) { rows.push_back(s.rows[m]); }
            const int n_kept    = std::max(1, quota(im.n, p.ivr_keep));
            int n_anchors = quota(n_kept, p.ivr_anchors);
            if (moment == when::before_question || im.covered) {
                n_anchors = late_anchors(im.n, n_anchors);
            }

            std::vector<int32_t> chosen;
            if (choice != HALFV_CHOICE_HALFV) {
                chosen = choose_otherwise(s, s.rows, members[i], s.query, n_kept, false);
            } else if (moment == when::before_question) {
                if (!im.covered) {
                    chosen = cover(s, rows, {}, n_kept - n_anchors);
                    s.stats.flops_spent += cost.cover(rows.size(), n_kept - n_anchors);
                }
            } else {
                if (n_anchors > 0) {
                    chosen = top_k(score(s, rows, s.query).data(), rows.size(), n_anchors);
                    s.stats.flops_spent += cost.scores(rows.size(), memory.bounds[1] - 1);
                }
                if (!im.covered) {
                    chosen = cover(s, rows, chosen, n_kept);
                    s.stats.flops_spent += cost.cover(rows.size(), n_kept);
                }
            }
            for (const size_t m : members[i]) { fate[m] = moment == when::question ? 3 : 2; }
            for (const int32_t c : chosen)    { fate[members[i][c]] = 1; }
        }
        for (const size_t m : members[i]) {
            if (fate[m] == 1) { im.kept.push_back(s.rows[m].index); }
        }
    }

    if (moment == when::question && s.new_question) {
        go = recall(s);
    }
    for (size_t i = 0; i < s.rows.size(); ++i) {
        if (!s.rows[i].deep) {
            (fate[i] == 1 ? go : fate[i] == 2 ? wait : pruned).push_back(s.rows[i]);
        }
    }
}

// which of these rows stage III updates
std::vector<uint8_t> prefill::choose_stage3(sequence & s, const std::vector<float> & query, const std::vector<row> & deep) {
    const auto & p = memory.profile;
    std::vector<uint8_t> stays(deep.size(), 1);

    std::vector<std::vector<size_t>> members(s.images.size());
    for (size_t i = 0; i < deep.size(); ++i) {
        if (deep[i].image >= 0) { members[deep[i].image].push_back(i); }
    }
    for (size_t i = 0; i < s.images.size(); ++i) {
        auto & im = s.images[i];
        if (p.ssr_update < 1.0f && applies(im) && !members[i].empty()) {
            std::vector<row> rows;
            for (const size_t m : members[i]) {
                rows.push_back(deep[m]);
                stays[m] = 0;
            }
            const int n_deep = quota(im.n, p.ssr_update);
            if (n_deep > 0 && choice != HALFV_CHOICE_HALFV) {
                for (const int32_t c : choose_otherwise(s, deep, members[i], query, n_deep, true)) { stays[members[i][c]] = 1; }
            } else if (n_deep > 0) {
                for (const int32_t c : top_k(score(s, rows, query).data(), rows.size(), n_deep)) { stays[members[i][c]] = 1; }
                s.stats.flops_spent += cost.scores(rows.size(), memory.bounds[2] - 1);
            }
        }
        for (const size_t m : members[i]) {
            if (stays[m]) { im.deep.push_back(deep[m].index); }
        }
    }
    return stays;
}

//
// top-up
//

// the stored tokens that matter most to a new question, back as pending rows
std::vector<row> prefill::recall(sequence & s) {
    std::vector<row> res;
    std::vector<uint8_t> taken(s.stored.size(), 0);
    for (size_t i = 0; i < s.images.size(); ++i) {
        auto & im = s.images[i];
        std::vector<size_t> members;
        std::vector<row> rows;
        for (size_t j = 0; j < s.stored.size(); ++j) {
            if (s.stored[j].image != (int32_t) i) {
                continue;
            }
            row r = s.stored[j];
            const uint32_t key = s.keys.grow(1);
            ggml_fp16_to_fp32_row(s.stored_keys.at(r.key), s.keys.at(key), memory.n_key);
            r.key = key;
            rows.push_back(r);
            members.push_back(j);
        }
        const auto & p = memory.profile;
        const int n_anchors = late_anchors(im.n, quota(std::max(1, quota(im.n, p.ivr_keep)), p.ivr_anchors));
        for (const int32_t c : top_k(score(s, rows, s.query).data(), rows.size(), n_anchors)) {
            const uint32_t hidden = s.hidden.grow(1);
            ggml_fp16_to_fp32_row(s.stored_hidden.at(rows[c].hidden), s.hidden.at(hidden), memory.n_hidden);
            rows[c].hidden = hidden;
            im.kept.push_back(rows[c].index);
            res.push_back(rows[c]);
            taken[members[c]] = 1;
        }
        s.stats.flops_spent += cost.scores(rows.size(), memory.bounds[1] - 1);
    }
    std::vector<row> left;
    for (size_t j = 0; j < s.stored.size(); ++j) {
        if (!taken[j]) { left.push_back(s.stored[j]); }
    }
    s.stored = std::move(left);
    return res;
}

void prefill::store(sequence & s, const std::vector<row> & pruned) {
    if (choice != HALFV_CHOICE_HALFV) {
        return; // top-up is not theirs, and their keys are rotated
    }
    const size_t bytes = (memory.n_hidden + memory.n_key)*sizeof(ggml_fp16_t);
    const size_t room  = topup_bytes/bytes;
    const size_t n_new = std::min(pruned.size(), room);
    for (size_t i = 0; i < n_new; ++i) {
        row r = pruned[i*pruned.size()/n_new]; // evenly, so that no part of a picture is lost for good
        const uint32_t hidden = s.stored_hidden.grow(1), key = s.stored_keys.grow(1);
        ggml_fp32_to_fp16_row(s.hidden.at(r.hidden), s.stored_hidden.at(hidden), memory.n_hidden);
        ggml_fp32_to_fp16_row(s.keys.at(r.key),      s.stored_keys.at(key),      memory.n_key);
        r.hidden = hidden;
        r.key    = key;
        r.group  = -1; // alone, later: causal
        s.stored.push_back(r);
    }
    // the oldest pictures give way
    if (s.stored.size() > room) {
        s.stored.erase(s.stored.begin(), s.stored.begin() + (s.stored.size() - room));
    }
}

} // namespace halfv
