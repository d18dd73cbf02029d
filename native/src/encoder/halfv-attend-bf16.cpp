#include "halfv-attend-kernel.h"
#include "halfv-tile-registers.h"

#ifdef HALFV_ATTEND

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include <immintrin.h>
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // in GCC's own header, with lanes that are meant to be undefined
#endif

namespace halfv {

#define HALFV_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define HALFV_INLINE HALFV_TARGET inline __attribute__((always_inline))

namespace {

constexpr int LANES = 16;
constexpr int ROWS  = 4;   // queries of a register tile
constexpr int CHUNK = 256; // keys of a pass between two corrections of the maximum

HALFV_INLINE __mmask16 mask(int n) {
    return (__mmask16) (n >= LANES ? 0xffff : (1u << std::max(n, 0)) - 1);
}

HALFV_INLINE __m512 load(const float * x, int n) {
    return _mm512_maskz_loadu_ps(mask(n), x);
}

HALFV_INLINE __m512i widen(__m512 x) {
    return _mm512_cvtepu16_epi32((__m256i) _mm512_cvtneps_pbh(x));
}

HALFV_INLINE __m512 dot(__m512 acc, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(acc, (__m512bh) a, (__m512bh) b);
}

// 2^x for x <= 0; the result is rounded to 8 bits, for which this is enough
HALFV_INLINE __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-126.0f));
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part  = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(0.0096181291f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.0555041087f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.2402265069f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.6931471806f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

int padded(int n, int unit) { return (n + unit - 1)/unit*unit; }

struct shape : heads {
    bool in_tiles; // 32 queries, keys and columns at a time

    int unit()   const { return in_tiles ? 2*LANES : LANES; }
    int rows(int n) const { return padded(n, in_tiles ? 2*LANES : ROWS); }
    int pairs()  const { return in_tiles ? padded(d, 2*LANES)/2 : (d + 1)/2; } // of columns
    int blocks() const { return padded(d, LANES)/LANES; }
    int keys()   const { return padded(n_k, unit()); }
};

// Rows of short windows are far apart and of one use: the next head's come while this one's are used.
HALFV_INLINE void fetch_next_head(const float * row, const shape & s) {
    for (int c = 0; c < s.d && s.n_k <= ATTEND_TILE*4; c += LANES) {
        _mm_prefetch((const char *) (row + s.d + c), _MM_HINT_T0);
    }
}

// Keys and values of one head: pairs of bf16, so that one instruction takes two columns of 16 keys, or two values of 16
// columns.
struct packs {
    std::vector<uint32_t> k, v;

    HALFV_TARGET void fill(const shape & s, const char * key, size_t nb_k, const char * value, size_t nb_v) {
        k.assign((size_t) s.keys()*s.pairs(), 0);
        v.resize((size_t) s.keys()/2*s.blocks()*LANES);
        std::vector<uint16_t> row(s.blocks()*LANES + LANES);
        for (int j = 0; j < s.n_k; ++j) {
            const float * x = (const float *) (key + j*nb_k);
            fetch_next_head(x, s);
            fetch_next_head((const float *) (value + j*nb_v), s);
            for (int c = 0; c < s.d; c += LANES) {
                _mm256_storeu_si256((__m256i *) (row.data() + c), (__m256i) _mm512_cvtneps_pbh(load(x + c, s.d - c)));
            }
            uint32_t * out = k.data() + (size_t) j/LANES*s.pairs()*LANES + j%LANES;
            for (int p = 0; p < s.pairs(); ++p) {
                memcpy(out + (size_t) p*LANES, row.data() + 2*p, sizeof(uint32_t));
            }
        }
        for (int j = 0; j < s.keys(); j += 2) {
            const float * a = (const float *) (value + j*nb_v);
            const float * b = (const float *) (value + (j + 1)*nb_v);
            for (int c = 0; c < s.d; c += LANES) {
                const __m512i low  = widen(load(a + c, j     < s.n_k ? s.d - c : 0));
                const __m512i high = widen(load(b + c, j + 1 < s.n_k ? s.d - c : 0));
                _mm512_storeu_si512(v.data() + ((size_t) j/2*s.blocks() + c/LANES)*LANES, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
    }
};

// ROWS queries times N blocks of 16 keys
template <int N>
HALFV_INLINE void scores(const uint32_t * q, const uint32_t * k, int pairs, float * out) {
    __m512 acc[ROWS][N];
    for (int i = 0; i < ROWS; ++i) {
        for (int b = 0; b < N; ++b) {
            acc[i][b] = _mm512_setzero_ps();
        }
    }
    for (int p = 0; p < pairs; ++p) {
        __m512i keys[N];
        for (int b = 0; b < N; ++b) {
            keys[b] = _mm512_loadu_si512(k + ((size_t) b*pairs + p)*LANES);
        }
        for (int i = 0; i < ROWS; ++i) {
            const __m512i x = _mm512_set1_epi32((int) q[(size_t) i*pairs + p]);
            for (int b = 0; b < N; ++b) {
                acc[i][b] = dot(acc[i][b], keys[b], x);
            }
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int b = 0; b < N; ++b) {
            _mm512_storeu_ps(out + i*CHUNK + b*LANES, acc[i][b]);
        }
    }
}

// adds the weighted values of n_pairs pairs of keys to N blocks of columns of ROWS queries
template <int N>
HALFV_INLINE void mix(const uint16_t * weights, const uint32_t * v, int n_pairs, int blocks, float * out) {
    __m512 acc[ROWS][N];
    for (int i = 0; i < ROWS; ++i) {
        for (int b = 0; b < N; ++b) {
            acc[i][b] = _mm512_loadu_ps(out + ((size_t) i*blocks + b)*LANES);
        }
    }
    for (int p = 0; p < n_pairs; ++p) {
        __m512i values[N];
        for (int b = 0; b < N; ++b) {
            values[b] = _mm512_loadu_si512(v + ((size_t) p*blocks + b)*LANES);
        }
        for (int i = 0; i < ROWS; ++i) {
            uint32_t pair;
            memcpy(&pair, weights + i*CHUNK + 2*p, sizeof(pair));
            const __m512i x = _mm512_set1_epi32((int) pair);
            for (int b = 0; b < N; ++b) {
                acc[i][b] = dot(acc[i][b], values[b], x);
            }
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int b = 0; b < N; ++b) {
            _mm512_storeu_ps(out + ((size_t) i*blocks + b)*LANES, acc[i][b]);
        }
    }
}

#ifdef HALFV_TILES
// 32 queries times n_keys keys, a multiple of 32
HALFV_TILE_TARGET void tile_scores(const uint32_t * q, const uint32_t * k, int pairs, int n_keys, float * out) {
    const size_t row = pairs*sizeof(uint32_t), out_row = CHUNK*sizeof(float);
    tile_fence();
    for (int b = 0; b < n_keys; b += 2*LANES) {
        const uint32_t * keys = k + (size_t) b*pairs, * next = keys + (size_t) LANES*pairs;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int p = 0; p < pairs; p += LANES) {
            _tile_loadd(4, q + p, row);
            _tile_loadd(5, q + (size_t) LANES*pairs + p, row);
            _tile_loadd(6, keys + (size_t) p*LANES, 64);
            _tile_loadd(7, next + (size_t) p*LANES, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, out + b, out_row);
        _tile_stored(1, out + b + LANES, out_row);
        _tile_stored(2, out + b + LANES*CHUNK, out_row);
        _tile_stored(3, out + b + LANES*CHUNK + LANES, out_row);
    }
    tile_fence();
}

// adds the weighted values of n_pairs pairs of keys, a multiple of 16, to all columns of 32 queries
HALFV_TILE_TARGET void tile_mix(const uint16_t * weights, const uint32_t * v, int n_pairs, int blocks, float * out) {
    const size_t row = blocks*LANES*sizeof(float), weights_row = CHUNK*sizeof(uint16_t);
    float * below = out + (size_t) LANES*blocks*LANES;
    tile_fence();
    int b = 0;
    for (; b + 1 < blocks; b += 2) {
        const int at = b*LANES, next = at + LANES;
        _tile_loadd(0, out + at, row);
        _tile_loadd(1, out + next, row);
        _tile_loadd(2, below + at, row);
        _tile_loadd(3, below + next, row);
        for (int p = 0; p < n_pairs; p += LANES) {
            const uint32_t * values = v + (size_t) p*blocks*LANES;
            _tile_loadd(4, weights + 2*p, weights_row);
            _tile_loadd(5, weights + LANES*CHUNK + 2*p, weights_row);
            _tile_loadd(6, values + at, row);
            _tile_loadd(7, values + next, row);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, out + at, row);
        _tile_stored(1, out + next, row);
        _tile_stored(2, below + at, row);
        _tile_stored(3, below + next, row);
    }
    if (b < blocks) {
        const int at = b*LANES;
        _tile_loadd(0, out + at, row);
        _tile_loadd(2, below + at, row);
        for (int p = 0; p < n_pairs; p += LANES) {
            _tile_loadd(4, weights + 2*p, weights_row);
            _tile_loadd(5, weights + LANES*CHUNK + 2*p, weights_row);
            _tile_loadd(6, v + (size_t) p*blocks*LANES + at, row);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(2, 5, 6);
        }
        _tile_stored(0, out + at, row);
        _tile_stored(2, below + at, row);
    }
    tile_fence();
}

#else
struct tile_use {};
void tile_scores(const uint32_t *, const uint32_t *, int, int, float *) {}
void tile_mix(const uint16_t *, const uint32_t *, int, int, float *) {}
#endif

class bf16_kernel : public attend_kernel {
public:
    bf16_kernel(const heads & of, bool in_tiles) : s{ of, in_tiles } {}

    HALFV_TARGET void pack(const char * key, size_t nb_k, const char * value, size_t nb_v) override {
        packed.fill(s, key, nb_k, value, nb_v);
    }

    HALFV_TARGET void attend(const char * q, size_t nb_q, int n, float scale, float * dst, size_t dst_row) override {
        const int pairs = s.pairs(), blocks = s.blocks();
        const int rows = s.rows(n);
        queries.assign((size_t) rows*pairs + LANES, 0);
        sums.assign((size_t) rows*blocks*LANES, 0.0f);
        const __m512 factor = _mm512_set1_ps(scale*1.44269504f); // the exponential is of base 2
        for (int i = 0; i < n; ++i) {
            uint16_t row[LANES];
            fetch_next_head((const float *) (q + i*nb_q), s);
            for (int c = 0; c < s.d; c += LANES) {
                const __m512 x = _mm512_mul_ps(load((const float *) (q + i*nb_q) + c, s.d - c), factor);
                _mm256_storeu_si256((__m256i *) row, (__m256i) _mm512_cvtneps_pbh(x));
                memcpy(queries.data() + (size_t) i*pairs + c/2, row, std::min(LANES, s.d - c + s.d % 2)*sizeof(uint16_t));
            }
        }

        float top[ATTEND_TILE], sum[ATTEND_TILE];
        std::fill(top, top + rows, -INFINITY);
        std::fill(sum, sum + rows, 0.0f);
        std::optional<tile_use> tiles;
        if (s.in_tiles) { tiles.emplace(); }
        for (int first = 0; first < s.n_k; first += CHUNK) {
            const int n_keys = std::min(CHUNK, s.keys() - first);
            for (int i = 0; i < rows && s.in_tiles; i += 2*LANES) {
                const uint32_t * k = packed.k.data() + (size_t) first*pairs;
                tile_scores(queries.data() + (size_t) i*pairs, k, pairs, n_keys, all_scores + i*CHUNK);
            }
            for (int b = 0; b < n_keys/LANES && !s.in_tiles; b += 4) {
                const uint32_t * k = packed.k.data() + ((size_t) first/LANES + b)*pairs*LANES;
                for (int i = 0; i < rows; i += ROWS) {
                    const uint32_t * x = queries.data() + (size_t) i*pairs;
                    float * out = all_scores + i*CHUNK + b*LANES;
                    switch (std::min(4, n_keys/LANES - b)) {
                        case 4: scores<4>(x, k, pairs, out); break;
                        case 3: scores<3>(x, k, pairs, out); break;
                        case 2: scores<2>(x, k, pairs, out); break;
                        case 1: scores<1>(x, k, pairs, out); break;
                    }
                }
            }
            for (int i = 0; i < rows; ++i) {
                float * score = all_scores + i*CHUNK;
                std::fill(score + std::min(n_keys, s.n_k - first), score + n_keys, -INFINITY);
                __m512 most = _mm512_set1_ps(top[i]);
                for (int j = 0; j < n_keys; j += LANES) {
                    most = _mm512_max_ps(most, _mm512_loadu_ps(score + j));
                }
                const float new_top = _mm512_reduce_max_ps(most);
                const __m512 shift = _mm512_set1_ps(new_top);
                __m512 total = _mm512_setzero_ps();
                for (int j = 0; j < n_keys; j += LANES) {
                    const __m512 x = _mm512_loadu_ps(score + j);
                    const __mmask16 there = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-INFINITY), _CMP_NEQ_OQ);
                    const __m512 e = _mm512_maskz_mov_ps(there, exp2_of(_mm512_sub_ps(x, shift)));
                    total = _mm512_add_ps(total, e);
                    _mm256_storeu_si256((__m256i *) (all_weights + i*CHUNK + j), (__m256i) _mm512_cvtneps_pbh(e));
                }
                if (new_top > top[i] && first > 0) {
                    const __m512 less = exp2_of(_mm512_set1_ps(top[i] - new_top));
                    sum[i] *= _mm512_cvtss_f32(less);
                    float * out = sums.data() + (size_t) i*blocks*LANES;
                    for (int b = 0; b < blocks; ++b) {
                        _mm512_storeu_ps(out + b*LANES, _mm512_mul_ps(_mm512_loadu_ps(out + b*LANES), less));
                    }
                }
                top[i] = new_top;
                sum[i] += _mm512_reduce_add_ps(total);
            }
            for (int i = 0; i < rows && s.in_tiles; i += 2*LANES) {
                const uint32_t * v = packed.v.data() + (size_t) first/2*blocks*LANES;
                tile_mix(all_weights + i*CHUNK, v, n_keys/2, blocks, sums.data() + (size_t) i*blocks*LANES);
            }
            for (int b = 0, width; b < blocks && !s.in_tiles; b += width) {
                width = blocks - b <= 5 ? blocks - b : 4;
                const uint32_t * v = packed.v.data() + ((size_t) first/2*blocks + b)*LANES;
                for (int i = 0; i < rows; i += ROWS) {
                    const uint16_t * weight = all_weights + i*CHUNK;
                    float * out = sums.data() + ((size_t) i*blocks + b)*LANES;
                    switch (width) {
                        case 5: mix<5>(weight, v, n_keys/2, blocks, out); break;
                        case 4: mix<4>(weight, v, n_keys/2, blocks, out); break;
                        case 3: mix<3>(weight, v, n_keys/2, blocks, out); break;
                        case 2: mix<2>(weight, v, n_keys/2, blocks, out); break;
                        case 1: mix<1>(weight, v, n_keys/2, blocks, out); break;
                    }
                }
            }
        }
        for (int i = 0; i < n; ++i) {
            const float * out = sums.data() + (size_t) i*blocks*LANES;
            const __m512 share = _mm512_set1_ps(1.0f/sum[i]);
            for (int c = 0; c < s.d; c += LANES) {
                _mm512_mask_storeu_ps(dst + i*dst_row + c, mask(s.d - c), _mm512_mul_ps(_mm512_loadu_ps(out + c), share));
            }
        }
    }

private:
    const shape s;
    packs packed;
    std::vector<uint32_t> queries;
    std::vector<float>    sums;
    alignas(64) float     all_scores[ATTEND_TILE*CHUNK];
    alignas(64) uint16_t  all_weights[ATTEND_TILE*CHUNK];
};

} // namespace

std::unique_ptr<attend_kernel> make_bf16_kernel(const heads & s, bool in_tiles) {
    return std::make_unique<bf16_kernel>(s, in_tiles); // some systems give threads small stacks
}

} // namespace halfv

#endif
