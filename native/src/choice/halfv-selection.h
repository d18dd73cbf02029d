#pragma once

// Which visual tokens to keep: pure functions on float arrays, nothing of llama.cpp.
//
// Matrices are row-major and dense. Index lists come back sorted ascending, without repeats.
// Nothing throws but std::bad_alloc. Sizes below one and indices out of range select nothing.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace halfv {

class worker_pool;

// cover() treats more tokens than this as contiguous groups, so that its cost stays near linear
constexpr int cover_group_max = 4096;
constexpr int cover_workers_max = 16;

// floor(ratio * n), forgiving the rounding of a product that should be whole; in [0, n]
int quota(int n, float ratio);

// Semantic anchoring: how much one query attends to n visual keys, as the mean over heads of each head's softmax
// over these keys only, dots unscaled.
//   q    [n_head * head_dim]
//   k    n rows of n_head_kv * head_dim floats, k_stride floats from one row to the next
//   out  [n]
// A dot that is NaN counts as -inf; a head without a finite maximum has no say (all zero if no head has one).
// n_head that is not a multiple of n_head_kv: out is all zero.
void visual_scores(const float * q, const float * k, size_t k_stride, int n, int n_head, int n_head_kv, int head_dim,
                   float * out);

// The same from the dots, [n_head][n], which it overwrites.
void scores_of_dots(float * dots, int n, int n_head, float * out);

// The k largest scores, the lower index first among equals, NaN as -inf; `skip` are not chosen and do not count.
std::vector<int32_t> top_k(const float * scores, int n, int k, const std::vector<int32_t> & skip = {});

// Features for cover(): the model's final RMS norm, then L2 normalised. rows, out: [n][d] (may be the same);
// norm_weight: [d], null for all ones. There is no eps: the norm's scale cancels in the L2 normalisation.
// A row that is zero, or not finite, becomes zero.
void final_norm_features(const float * rows, const float * norm_weight, int n, int d, float * out);

// A layer norm in place, for models that have it instead; weight and bias may be null.
void layer_norm(float * row, const float * weight, const float * bias, int d, float eps);

// Coverage expansion: greedy farthest-point sampling with distance 1 - cos. Starts from the anchors, adds the token
// whose nearest chosen token is farthest (lowest index among equals) until k are chosen; without anchors the first
// is token 0. Anchors are always in the result, so it has min(n, max(k, anchors)) tokens.
// A similarity that is NaN is ignored: it brings no token nearer.
// More than cover_group_max tokens: each of cover_groups() on its own. Without workers the caller does it alone; a round
// has no more work than cover_workers_max can share.
// `stop`, if given, is asked every few milliseconds; once it says yes, nothing is chosen.
std::vector<int32_t> cover(const float * features, int n, int d, const std::vector<int32_t> & anchors, int k,
                           worker_pool * workers = nullptr, const std::function<bool()> & stop = nullptr);

// Where a symmetric matrix of similarities lies of which only the lower triangle is there, in blocks of rows: those of a block
// all reach to its last token. A block's rows are cut where stripes of columns end, into tiles that follow each other. With one
// block of n or more: the whole, [n][n].
struct gram_layout {
    int n;
    int block = INT32_MAX, stripe = INT32_MAX;

    int    n_tiles(int b) const;       // of a block
    int    width(int b, int s) const;  // columns of its tile in a stripe
    size_t tile(int b, int s) const;   // where that begins
    size_t at(int i, int j) const;     // j <= i, or in its block
    size_t size() const;               // floats

    int64_t rows_of(int b) const { return block < n ? std::min(block, n - b*block) : n; }
    int64_t end_of(int b)  const { return block < n ? std::min((int64_t) n, (int64_t) (b + 1)*block) : n; }
};
constexpr int gram_block = 256, gram_stripe = 1024; // what devices compute

// The same over such a matrix. Never grouped.
std::vector<int32_t> cover_gram(const float * gram, const gram_layout & layout, const std::vector<int32_t> & anchors, int k);

// What a device makes of a state that is not finite, known by its similarity to itself, becomes 0, as it is for cover().
void clear_broken(float * gram, const gram_layout & layout);

struct cover_group {
    int first;
    int count;
    int k;                        // this group's share of the quota, at least its anchors
    std::vector<int32_t> anchors; // counted from `first`
};

// Contiguous groups of at most cover_group_max tokens, sizes differing by at most one; k is shared by largest
// remainder, in proportion to size. For a caller that computes the Gram matrices itself.
std::vector<cover_group> cover_groups(int n, const std::vector<int32_t> & anchors, int k,
                                      int group_max = cover_group_max);

// How many of n tokens each of the chosen stands for, itself among them: every other counts to the chosen one most like it, the
// first of equals, and brings `counts` of its own along. Features as cover() has them; more than cover_group_max tokens look
// only among those chosen of their own group, where there are some. As long as `counts`, 0 for those not chosen.
std::vector<uint32_t> stand_for(const float * features, int n, int d, const std::vector<int32_t> & chosen, const std::vector<uint32_t> & counts,
                                worker_pool * workers = nullptr);

} // namespace halfv
