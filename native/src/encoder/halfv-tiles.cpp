#include "halfv-tiles.h"
#include "halfv-cpu.h"
#include "halfv-tile-registers.h"

#ifdef HALFV_TILES

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // in GCC's own header, with lanes that are meant to be undefined
#endif

namespace halfv {

namespace {

// A register holds 16 rows of 32 columns of x or of the matrix, or of 16 floats of the result.
constexpr int64_t SIDE = 16, DEPTH = 32, TILE = SIDE*DEPTH;

// what a thread holds in its second cache while it goes over rows of x, and of x at a time
constexpr int64_t MATRIX_BYTES = 768 << 10, ROWS_BYTES = 4 << 20;

// 16 x 16 numbers of 32 bits
HALFV_TILE_TARGET inline void transpose(__m512i r[SIDE]) {
    __m512i t[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        t[i]     = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4) {
        r[i]     = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < SIDE; i += 8) {
        for (int j = i; j < i + 4; ++j) {
            t[j]     = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
            t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        }
    }
    for (int j = 0; j < 8; ++j) {
        r[j]     = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

int64_t whole_pairs(int64_t n) { return (n + 2*SIDE - 1)/(2*SIDE)*2*SIDE; }

// Rows of x as tiles, those of 16 rows one behind the other; what is behind the last row of a pair of them is zero.
HALFV_TILE_TARGET void pack_rows(const char * x, size_t row_bytes, int64_t n, int64_t depth, std::vector<uint16_t> & out) {
    out.resize(whole_pairs(n)*depth);
    for (int64_t i = 0; i < whole_pairs(n); ++i) {
        const float * row = (const float *) (x + i*row_bytes);
        uint16_t * to = out.data() + i/SIDE*SIDE*depth + i%SIDE*DEPTH;
        for (int64_t k = 0; k < depth; k += DEPTH, to += TILE) {
            const __m512i both = i < n ? (__m512i) _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + k + SIDE), _mm512_loadu_ps(row + k))
                                       : _mm512_setzero_si512();
            _mm512_storeu_si512(to, both);
        }
    }
}

// Rows of the matrix likewise, with pairs of their columns in rows, as the second factor has to be.
HALFV_TILE_TARGET void pack_matrix(const char * matrix, size_t row_bytes, int64_t n, int64_t depth, std::vector<uint16_t> & out) {
    out.resize(whole_pairs(n)*depth);
    uint16_t * to = out.data();
    for (int64_t i = 0; i < whole_pairs(n); i += SIDE) {
        for (int64_t k = 0; k < depth; k += DEPTH, to += TILE) {
            __m512i rows[SIDE];
            for (int64_t j = 0; j < SIDE; ++j) {
                rows[j] = i + j < n ? _mm512_loadu_si512(matrix + (i + j)*row_bytes + k*sizeof(uint16_t)) : _mm512_setzero_si512();
            }
            transpose(rows);
            for (int64_t j = 0; j < SIDE; ++j) {
                _mm512_storeu_si512(to + j*DEPTH, rows[j]);
            }
        }
    }
}

// 32 rows of x times 32 of the matrix
HALFV_TILE_TARGET inline void product(const uint16_t * x, const uint16_t * matrix, int64_t depth, float * out, size_t row_bytes) {
    const uint16_t * x2 = x + SIDE*depth, * matrix2 = matrix + SIDE*depth;
    tile_fence();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth*SIDE; k += TILE) {
        _tile_loadd(4, x + k, 64);
        _tile_loadd(6, matrix + k, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, matrix2 + k, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x2 + k, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    char * below = (char *) out + SIDE*row_bytes;
    _tile_stored(0, out, row_bytes);
    _tile_stored(1, out + SIDE, row_bytes);
    _tile_stored(2, below, row_bytes);
    _tile_stored(3, below + SIDE*sizeof(float), row_bytes);
    tile_fence();
}

HALFV_TILE_TARGET void multiply_rows(const ggml_tensor * matrix, const ggml_tensor * x, ggml_tensor * dst, int64_t first, int64_t last) {
    static thread_local std::vector<uint16_t> rows, columns; // of threads that come back for each product
    const int64_t depth = matrix->ne[0], n = matrix->ne[1];
    const auto at_once = [&](int64_t bytes) { return std::max<int64_t>(bytes/(depth*(int64_t) sizeof(uint16_t))/(2*SIDE), 1)*2*SIDE; };
    const int64_t n_rows = at_once(ROWS_BYTES), n_columns = at_once(MATRIX_BYTES);
    const tile_use tiles;
    for (int64_t i = first; i < last; i += n_rows) {
        const int64_t count = std::min(n_rows, last - i);
        pack_rows((const char *) x->data + i*x->nb[1], x->nb[1], count, depth, rows);
        for (int64_t j = 0; j < n; j += n_columns) {
            const int64_t wide = std::min(n_columns, n - j);
            pack_matrix((const char *) matrix->data + j*matrix->nb[1], matrix->nb[1], wide, depth, columns);
            for (int64_t r = 0; r < count; r += 2*SIDE) {
                for (int64_t c = 0; c < wide; c += 2*SIDE) {
                    float * out = (float *) ((char *) dst->data + (i + r)*dst->nb[1]) + j + c;
                    const int64_t high = std::min(2*SIDE, count - r), across = std::min(2*SIDE, wide - c);
                    if (high == 2*SIDE && across == 2*SIDE) {
                        product(rows.data() + r*depth, columns.data() + c*depth, depth, out, dst->nb[1]);
                        continue;
                    }
                    float edge[4*SIDE*SIDE];
                    product(rows.data() + r*depth, columns.data() + c*depth, depth, edge, 2*SIDE*sizeof(float));
                    for (int64_t k = 0; k < high; ++k) {
                        memcpy((char *) out + k*dst->nb[1], edge + k*2*SIDE, across*sizeof(float));
                    }
                }
            }
        }
    }
}

void multiply_op(ggml_tensor * dst, int ith, int nth, void *) {
    const int64_t n_pairs = whole_pairs(dst->ne[1])/(2*SIDE);
    const int64_t first = n_pairs*ith/nth*2*SIDE, last = std::min(n_pairs*(ith + 1)/nth*2*SIDE, dst->ne[1]);
    if (first < last) {
        multiply_rows(dst->src[0], dst->src[1], dst, first, last);
    }
}

} // namespace

bool can_tile() { return cpu_has(cpu_part::AMX); }

bool suits_tiles(const ggml_tensor * matrix, const ggml_tensor * x) {
    return can_tile() && matrix->type == GGML_TYPE_BF16 && x->type == GGML_TYPE_F32 && ggml_n_dims(matrix) <= 2 && ggml_n_dims(x) <= 2 &&
           matrix->ne[0] % DEPTH == 0 && x->ne[1] >= SIDE && matrix->nb[0] == sizeof(uint16_t) && x->nb[0] == sizeof(float);
}

ggml_tensor * multiply_tiles(ggml_context * ctx, ggml_tensor * matrix, ggml_tensor * x) {
    ggml_tensor * args[] = { matrix, x };
    return ggml_custom_4d(ctx, GGML_TYPE_F32, matrix->ne[1], x->ne[1], 1, 1, args, 2, multiply_op, GGML_N_TASKS_MAX, nullptr);
}

} // namespace halfv

#else

namespace halfv {

bool can_tile() { return false; }

bool suits_tiles(const ggml_tensor *, const ggml_tensor *) { return false; }

ggml_tensor * multiply_tiles(ggml_context * ctx, ggml_tensor * matrix, ggml_tensor * x) { return ggml_mul_mat(ctx, matrix, x); }

} // namespace halfv

#endif
