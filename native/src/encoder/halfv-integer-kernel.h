// The kernel of products of 8-bit integers, once for each width of vectors: who includes this says HALFV_LANES and HALFV_TARGET,
// and in which namespace, with dot(sums, u, s): the sums and products of four unsigned with four signed numbers in each lane.
// A vector has as many columns of the result, which are rows of the matrix. The matrix's numbers go in with 128 added, to be
// unsigned; 128 times the sum of x's is taken off, where sums begin.

typedef float   vec  __attribute__((vector_size(4*HALFV_LANES)));
typedef int32_t ints __attribute__((vector_size(4*HALFV_LANES)));

#define HALFV_INLINE HALFV_TARGET inline __attribute__((always_inline))

constexpr int LANES   = HALFV_LANES;
constexpr int ROWS    = LANES == 16 ? 4 : 3; // of x, of a register tile: the registers are 32 or 16
constexpr int WIDE    = LANES == 16 ? 3 : 2; // vectors of columns of one
constexpr int COLUMNS = WIDE*LANES;

// a block of x's rows
struct row_block {
    float   scale[ROWS];
    int32_t start[ROWS]; // of a sum
    int8_t  numbers[ROWS][BLOCK];
};

// a block of the matrix's, four numbers of a row in a lane
struct column_block {
    vec  scale[WIDE];
    ints numbers[BLOCK/4][WIDE];
};

constexpr int64_t BLOCKS_AT_ONCE = COLUMN_BYTES/sizeof(column_block);

// Groups of ROWS rows are stored in runs of blocks that are multiplied at once: a run of all groups, and then the next.
HALFV_INLINE int64_t place(int64_t group, int64_t n_groups, int64_t block, int64_t n_blocks) {
    const int64_t first = block/BLOCKS_AT_ONCE*BLOCKS_AT_ONCE;
    return first*n_groups + group*std::min(BLOCKS_AT_ONCE, n_blocks - first) + block - first;
}

// Rounds n <= ROWS rows of x, a group; those missing are zeros.
HALFV_TARGET static void quantise(const char * x, size_t row_bytes, int64_t n, int64_t group, int64_t n_groups, int64_t n_blocks,
                                  row_block * all) {
    for (int64_t b = 0; b < n_blocks; ++b) {
        row_block & to = all[place(group, n_groups, b, n_blocks)];
        for (int64_t i = 0; i < ROWS; ++i) {
            if (i >= n) {
                to.scale[i] = 0.0f;
                to.start[i] = 0;
                memset(to.numbers[i], 0, BLOCK);
                continue;
            }
            const float * from = (const float *) (x + i*row_bytes) + b*BLOCK;
            __m256 v[4], most = _mm256_setzero_ps();
            for (int j = 0; j < 4; ++j) {
                v[j] = _mm256_loadu_ps(from + 8*j);
                most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v[j]));
            }
            __m128 top = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
            top = _mm_max_ps(top, _mm_movehl_ps(top, top));
            top = _mm_max_ss(top, _mm_movehdup_ps(top));
            const float largest = _mm_cvtss_f32(top);
            const __m256 inverse = _mm256_set1_ps(largest ? 127.0f/largest : 0.0f);
            __m256i q[4];
            for (int j = 0; j < 4; ++j) { q[j] = _mm256_cvtps_epi32(_mm256_mul_ps(v[j], inverse)); }
            __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
            bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); // packing goes by halves
            _mm256_storeu_si256((__m256i *) to.numbers[i], bytes);
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
            const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
            to.scale[i] = largest/127.0f;
            to.start[i] = -128*_mm_cvtsi128_si32(sum);
        }
    }
}

// Blocks of n <= COLUMNS rows of a matrix; those missing are zeros.
HALFV_TARGET static void pack(const char * matrix, size_t row_bytes, int64_t n, int64_t n_blocks, column_block * to) {
    for (int64_t b = 0; b < n_blocks; ++b, matrix += BLOCK_BYTES) {
        for (int64_t first = 0; first < COLUMNS; first += 8) {
            float scales[8] = {};
            __m256i r[8], t[8];
            for (int64_t i = 0; i < 8; ++i) {
                r[i] = _mm256_setzero_si256();
                if (first + i < n) {
                    const char * block = matrix + (first + i)*row_bytes;
                    uint16_t half;
                    memcpy(&half, block, sizeof(half));
                    scales[i] = _cvtsh_ss(half);
                    r[i] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *) (block + sizeof(half))), _mm256_set1_epi8(-128));
                }
            }
            for (int i = 0; i < 8; i += 2) {
                t[i]     = _mm256_unpacklo_epi32(r[i], r[i + 1]);
                t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
            }
            for (int i = 0; i < 8; i += 4) {
                r[i]     = _mm256_unpacklo_epi64(t[i], t[i + 2]);
                r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
                r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
                r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
            }
            for (int k = 0; k < 4; ++k) {
                t[k]     = _mm256_permute2x128_si256(r[k], r[k + 4], 0x20);
                t[k + 4] = _mm256_permute2x128_si256(r[k], r[k + 4], 0x31);
            }
            memcpy((float *) to[b].scale + first, scales, sizeof(scales));
            for (int k = 0; k < 8; ++k) { memcpy((int32_t *) to[b].numbers[k] + first, &t[k], sizeof(t[k])); }
        }
    }
}

// adds ROWS rows of x times COLUMNS of the matrix, or writes them
HALFV_TARGET static void multiply_tile(const row_block * x, const column_block * matrix, int64_t n_blocks, bool adds,
                                       float * out, size_t stride) {
    vec acc[ROWS][WIDE] = {};
    if (adds) {
        for (int i = 0; i < ROWS; ++i) { memcpy(acc[i], out + i*stride, sizeof(acc[i])); }
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        ints sum[ROWS][WIDE];
        for (int i = 0; i < ROWS; ++i) {
            for (int j = 0; j < WIDE; ++j) { sum[i][j] = x[b].start[i] - ints{}; }
        }
#pragma GCC unroll 8
        for (int k = 0; k < BLOCK/4; ++k) {
            for (int i = 0; i < ROWS; ++i) {
                int32_t four;
                memcpy(&four, x[b].numbers[i] + 4*k, sizeof(four));
                for (int j = 0; j < WIDE; ++j) { sum[i][j] = dot(sum[i][j], matrix[b].numbers[k][j], four - ints{}); }
            }
        }
        for (int i = 0; i < ROWS; ++i) {
            for (int j = 0; j < WIDE; ++j) {
                acc[i][j] += __builtin_convertvector(sum[i][j], vec)*(matrix[b].scale[j]*x[b].scale[i]);
            }
        }
    }
    for (int i = 0; i < ROWS; ++i) { memcpy(out + i*stride, acc[i], sizeof(acc[i])); }
}

// Groups of ROWS rows of x, from one of n_groups on, times COLUMNS rows of the matrix, of which n_rows and n_columns are there.
HALFV_TARGET static void multiply_columns(const row_block * x, int64_t group, int64_t n_groups, const char * matrix,
                                          size_t row_bytes, int64_t n_blocks, int64_t n_rows, int64_t n_columns,
                                          float * out, size_t stride) {
    alignas(64) column_block columns[BLOCKS_AT_ONCE]; // stays in the first cache while x goes by
    for (int64_t b = 0; b < n_blocks; b += BLOCKS_AT_ONCE) {
        const int64_t count = std::min(BLOCKS_AT_ONCE, n_blocks - b);
        pack(matrix + b*BLOCK_BYTES, row_bytes, n_columns, count, columns);
        for (int64_t i = 0; i < n_rows; i += ROWS) {
            const row_block * rows = x + place(group + i/ROWS, n_groups, b, n_blocks);
            float * to = out + i*stride;
            if (i + ROWS <= n_rows && n_columns == COLUMNS) {
                multiply_tile(rows, columns, count, b > 0, to, stride);
                continue;
            }
            float edge[ROWS*COLUMNS];
            multiply_tile(rows, columns, count, false, edge, COLUMNS);
            for (int64_t r = 0; r < std::min<int64_t>(ROWS, n_rows - i); ++r) {
                for (int64_t c = 0; c < n_columns; ++c) { to[r*stride + c] = edge[r*COLUMNS + c] + (b ? to[r*stride + c] : 0.0f); }
            }
        }
    }
}

// A product's two operations. The first thread of the first makes `next` zero, and threads of the second take its parts from it:
// some cores of a laptop are much slower than others.
struct product {
    using counter = std::atomic<int64_t>;
    static constexpr int64_t HEAD = 64; // bytes of it before the rows

    static int64_t n_groups(int64_t n_rows) { return (n_rows + ROWS - 1)/ROWS; }

    static int64_t bytes(int64_t depth, int64_t n_rows) {
        return HEAD + n_groups(n_rows)*(depth/BLOCK)*(int64_t) sizeof(row_block);
    }

    static void round(ggml_tensor * dst, int ith, int nth, void *) {
        const ggml_tensor * x = dst->src[0];
        const int64_t n_blocks = x->ne[0]/BLOCK, groups = n_groups(x->ne[1]);
        if (ith == 0) { new (dst->data) counter(0); }
        row_block * rows = (row_block *) ((char *) dst->data + HEAD);
        for (int64_t g = groups*ith/nth; g < groups*(ith + 1)/nth; ++g) {
            const int64_t n = std::min<int64_t>(ROWS, x->ne[1] - g*ROWS);
            quantise((const char *) x->data + g*ROWS*x->nb[1], x->nb[1], n, g, groups, n_blocks, rows);
        }
    }

    static void multiply(ggml_tensor * dst, int, int, void *) {
        const ggml_tensor * matrix = dst->src[0], * rounded = dst->src[1];
        const int64_t n_blocks = matrix->ne[0]/BLOCK, n = dst->ne[0], n_rows = dst->ne[1];
        const int64_t group_bytes = n_blocks*(int64_t) sizeof(row_block);
        const int64_t rows_at_once = std::max<int64_t>(ROW_BYTES/group_bytes, 1)*ROWS;
        const int64_t across = (n + COLUMNS - 1)/COLUMNS, down = (n_rows + rows_at_once - 1)/rows_at_once;
        const row_block * x = (const row_block *) ((const char *) rounded->data + HEAD);
        counter * next = (counter *) rounded->data;
        const size_t stride = dst->nb[1]/sizeof(float);
        for (int64_t part; (part = next->fetch_add(1, std::memory_order_relaxed)) < across*down;) {
            const int64_t row = part/across*rows_at_once, column = part % across*COLUMNS;
            multiply_columns(x, row/ROWS, n_groups(n_rows), (const char *) matrix->data + column*matrix->nb[1], matrix->nb[1],
                             n_blocks, std::min(rows_at_once, n_rows - row), std::min<int64_t>(COLUMNS, n - column),
                             (float *) dst->data + row*stride + column, stride);
        }
    }
};


#undef HALFV_INLINE
