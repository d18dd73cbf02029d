// Other ways to choose tokens than HalfV's own, for bench and eval.

#include "halfv-policy.h"

#include "halfv-prefill.h"
#include "halfv-selection.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace halfv {

std::vector<int32_t> choose_uniform(int n, int k) {
    std::vector<int32_t> res;
    for (int64_t i = 0; i < std::min(n, k); ++i) {
        res.push_back((int32_t) ((2*i + 1)*n/(2*k)));
    }
    return res;
}

// splitmix64
static uint64_t next_random(uint64_t & state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30))*0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27))*0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

std::vector<int32_t> choose_random(int n, int k, uint64_t seed) {
    std::vector<int32_t> res(n);
    std::iota(res.begin(), res.end(), 0);
    k = std::min(n, k);
    for (int i = 0; i < k; ++i) {
        std::swap(res[i], res[i + next_random(seed) % (n - i)]);
    }
    res.resize(k);
    std::sort(res.begin(), res.end());
    return res;
}

std::vector<int32_t> choose_dart(const float * keys, int width, const float * features, int d, int n_visual, int n_text, int k) {
    std::vector<float> norms(n_visual + n_text);
    for (size_t i = 0; i < norms.size(); ++i) {
        norms[i] = std::accumulate(keys + i*width, keys + (i + 1)*width, 0.0f, [](float sum, float x) { return sum + std::fabs(x); });
    }
    std::vector<int32_t> pivots = top_k(norms.data(), n_visual, std::min(dart_pivots, n_visual));
    std::vector<int32_t> texts  = top_k(norms.data() + n_visual, n_text, std::min(dart_pivots, n_text));
    std::sort(pivots.begin(), pivots.end());
    std::sort(texts.begin(), texts.end());

    std::vector<int32_t> taken = pivots;
    for (const auto t : texts) { pivots.push_back(n_visual + t); }

    const int per_pivot = k/(2*dart_pivots);
    std::vector<float> unlike(n_visual);
    for (const auto p : pivots) {
        const float * x = features + (size_t) p*d;
        for (int i = 0; i < n_visual; ++i) {
            unlike[i] = -std::inner_product(x, x + d, features + (size_t) i*d, 0.0f);
        }
        const auto found = top_k(unlike.data(), n_visual, per_pivot, taken);
        taken.insert(taken.end(), found.begin(), found.end());
    }
    std::sort(taken.begin(), taken.end());
    return taken;
}

// different for every prompt, the same for the same prompt
static uint64_t prompt_seed(uint32_t seed, const std::vector<float> & query) {
    uint64_t hash = 0xcbf29ce484222325ull ^ seed;
    for (const float x : query) {
        uint32_t bits;
        memcpy(&bits, &x, sizeof(bits));
        hash = (hash ^ bits)*0x100000001b3ull;
    }
    return hash;
}

// the last token's attention to each of these rows, over those whose keys are there
std::vector<float> prefill::attention(const std::vector<row> & rows, std::vector<float> query) const {
    const float scale = 1.0f/std::sqrt((float) ctx.model.hparams.n_embd_head_k(memory.asked[0]));
    for (auto & x : query) { x *= scale; }

    std::vector<row> known;
    for (const auto & r : rows) {
        if (r.key) { known.push_back(r); }
    }
    const auto scores = score(known, query);
    std::vector<float> res;
    for (size_t i = 0, j = 0; i < rows.size(); ++i) {
        res.push_back(rows[i].key ? scores[j++] : 0.0f);
    }
    return res;
}

// k of the rows `members`, as indices into members
std::vector<int32_t> prefill::choose_otherwise(sequence & s, const std::vector<row> & rows, const std::vector<size_t> & members,
                                               const std::vector<float> & query, int k, int stage) {
    const int n = members.size();
    if (choice == HALFV_CHOICE_GIVEN) {
        return choose_as_given(s, rows, members, k, stage);
    }
    if (choice == HALFV_CHOICE_UNIFORM) {
        return choose_uniform(n, k);
    }
    if (choice == HALFV_CHOICE_RANDOM) {
        return choose_random(n, k, prompt_seed(choice_seed, query) + rows[members[0]].image);
    }
    if (choice == HALFV_CHOICE_DART && stage == 1) {
        std::vector<row> both;
        for (const size_t m : members) { both.push_back(rows[m]); }
        for (size_t i = members.back() + 1; i < rows.size(); ++i) {
            if (rows[i].image < 0 && rows[i].key) { both.push_back(rows[i]); }
        }
        const size_t d = ctx.model.hparams.n_embd, width = memory.n_key;
        std::vector<float> keys(both.size()*width), features, state;
        state_store::read(refs_of(both, &row::key), keys.data());
        for (const auto & r : both) {
            r.hidden.read(state);
            features.insert(features.end(), state.begin(), state.begin() + d);
        }
        make_features(features);
        s.stats.flops_spent += cost.cover(n, 2*dart_pivots);
        return choose_dart(keys.data(), width, features.data(), d, n, both.size() - n, k);
    }
    const auto scores = attention(rows, query);
    std::vector<float> mine;
    for (const size_t m : members) { mine.push_back(scores[m]); }
    s.stats.flops_spent += cost.scores(rows.size(), memory.bounds[stage] - 1);
    return top_k(mine.data(), n, k);
}

std::vector<int32_t> prefill::choose_as_given(sequence & s, const std::vector<row> & rows, const std::vector<size_t> & members, int k, int stage) {
    std::vector<row> seen, text;
    const auto add_text = [&](size_t first, size_t end) {
        for (size_t i = first; i < end; ++i) {
            if (rows[i].image < 0 && rows[i].key && rows[i].query) { text.push_back(rows[i]); }
        }
    };
    add_text(0, members[0]);
    const size_t n_before = text.size();
    add_text(members.back() + 1, rows.size());
    seen.assign(text.begin(), text.begin() + n_before);
    for (const size_t m : members) { seen.push_back(rows[m]); }
    seen.insert(seen.end(), text.begin() + n_before, text.end());

    const auto & hparams = ctx.model.hparams;
    const int32_t il = memory.asked[stage - 1];
    const size_t d = hparams.n_embd, width = (size_t) hparams.n_head_kv(il)*hparams.n_embd_head_k(il);
    std::vector<float> states, keys, queries, visual_queries, value;
    for (const auto & r : seen) {
        r.hidden.read(value);
        states.insert(states.end(), value.begin(), value.begin() + d);
        r.key.read(value);
        keys.insert(keys.end(), value.begin(), value.begin() + width);
    }
    const auto add_query = [&](const row & r, std::vector<float> & to) {
        r.query.read(value);
        to.insert(to.end(), value.begin(), value.begin() + hparams.n_head(il)*hparams.n_embd_head_k(il));
    };
    for (const auto & r : text) { add_query(r, queries); }
    for (const size_t m : members) { add_query(rows[m], visual_queries); }
    auto features = states;
    make_features(features);
    std::vector<int32_t> index;
    for (const size_t m : members) { index.push_back(rows[m].index); }

    halfv_choosing what = {};
    what.size      = sizeof(what);
    what.stage     = stage + 1;
    what.n_before  = n_before;
    what.n_visual  = members.size();
    what.n_after   = text.size() - n_before;
    what.n_keep    = k;
    what.n_embd    = d;
    what.n_head    = hparams.n_head(il);
    what.n_head_kv = hparams.n_head_kv(il);
    what.head_dim  = hparams.n_embd_head_k(il);
    what.index     = index.data();
    what.states    = states.data();
    what.features  = features.data();
    what.keys      = keys.data();
    what.queries   = queries.data();
    what.visual_queries = visual_queries.data();

    double flops = 0;
    std::vector<int32_t> chosen(k);
    const int32_t n = chooser ? chooser(&what, chosen.data(), &flops, chooser_user) : -1;
    if (n < 0 || n > k) {
        throw std::runtime_error("the chooser failed");
    }
    chosen.resize(n);
    std::sort(chosen.begin(), chosen.end());
    const bool valid = std::adjacent_find(chosen.begin(), chosen.end()) == chosen.end() &&
                       (chosen.empty() || (chosen.front() >= 0 && chosen.back() < what.n_visual));
    if (!valid) {
        throw std::runtime_error("the chooser chose a token twice, or none of the picture's");
    }
    s.stats.flops_spent += flops;
    return chosen;
}

} // namespace halfv
