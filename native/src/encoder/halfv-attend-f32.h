// The kernel of attention in f32, once for each width of vectors: who includes this says HALFV_LANES and HALFV_TARGET, and in
// which namespace. Keys of a block of lanes lie column by column, so that one vector has a column of as many keys.

typedef float   vec  __attribute__((vector_size(4*HALFV_LANES)));
typedef int32_t ints __attribute__((vector_size(4*HALFV_LANES)));

#define HALFV_INLINE HALFV_TARGET inline __attribute__((always_inline))

constexpr int LANES = HALFV_LANES;
constexpr int ROWS  = 4;                    // queries of a register tile
constexpr int WIDE  = LANES == 16 ? 4 : 2;  // blocks of keys of one: the registers are 32 or 16
constexpr int DEEP  = LANES == 16 ? 5 : 2;  // blocks of columns
constexpr int CHUNK = 256;                  // keys of a pass between two corrections of the maximum

HALFV_INLINE vec load(const float * x) {
    vec v;
    memcpy(&v, x, sizeof(v));
    return v;
}

HALFV_INLINE void store(float * x, const vec & v) {
    memcpy(x, &v, sizeof(v));
}

HALFV_INLINE vec all(float x) {
    return x - vec{};
}

// 2^x for x <= 0, to seven digits
HALFV_INLINE vec exp2_of(vec x) {
    x = x > -125.0f ? x : all(-125.0f);
    const ints whole = __builtin_convertvector(x - 0.5f, ints);
    const vec  part  = x - __builtin_convertvector(whole, vec);
    vec y = all(0.000154035304f);
    y = y*part + 0.00133335581f;
    y = y*part + 0.00961812911f;
    y = y*part + 0.0555041087f;
    y = y*part + 0.240226507f;
    y = y*part + 0.693147181f;
    y = y*part + 1.0f;
    return (vec) ((ints) y + (whole << 23));
}

HALFV_INLINE float most_of(const vec & v) {
    float top = v[0];
    for (int i = 1; i < LANES; ++i) { top = std::max(top, v[i]); }
    return top;
}

HALFV_INLINE float sum_of(const vec & v) {
    float sum = v[0];
    for (int i = 1; i < LANES; ++i) { sum += v[i]; }
    return sum;
}

// ROWS queries times N blocks of keys
template <int N>
HALFV_INLINE void scores(const float * q, int d, const float * k, float * out) {
    vec acc[ROWS][N] = {};
    for (int c = 0; c < d; ++c) {
        vec keys[N];
        for (int b = 0; b < N; ++b) { keys[b] = load(k + ((size_t) b*d + c)*LANES); }
        for (int i = 0; i < ROWS; ++i) {
            const vec x = all(q[(size_t) i*d + c]);
            for (int b = 0; b < N; ++b) { acc[i][b] += keys[b]*x; }
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int b = 0; b < N; ++b) { store(out + i*CHUNK + b*LANES, acc[i][b]); }
    }
}

// adds the weighted values of n keys to N blocks of columns of ROWS queries
template <int N>
HALFV_INLINE void mix(const float * weights, const float * v, int n, int width, float * out) {
    vec acc[ROWS][N];
    for (int i = 0; i < ROWS; ++i) {
        for (int b = 0; b < N; ++b) { acc[i][b] = load(out + (size_t) i*width + b*LANES); }
    }
    for (int j = 0; j < n; ++j) {
        vec values[N];
        for (int b = 0; b < N; ++b) { values[b] = load(v + (size_t) j*width + b*LANES); }
        for (int i = 0; i < ROWS; ++i) {
            const vec x = all(weights[i*CHUNK + j]);
            for (int b = 0; b < N; ++b) { acc[i][b] += values[b]*x; }
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int b = 0; b < N; ++b) { store(out + (size_t) i*width + b*LANES, acc[i][b]); }
    }
}

class kernel : public attend_kernel {
public:
    explicit kernel(const heads & s) :
        s(s), width((s.d + LANES - 1)/LANES*LANES), n_keys((s.n_k + LANES - 1)/LANES*LANES),
        keys((size_t) n_keys*s.d), values((size_t) n_keys*width), queries((size_t) ATTEND_TILE*s.d), out((size_t) ATTEND_TILE*width),
        score((size_t) ATTEND_TILE*CHUNK) {}

    HALFV_TARGET void pack(const char * key, size_t nb_k, const char * value, size_t nb_v) override {
        for (int j = 0; j < s.n_k; ++j) {
            const float * x = (const float *) (key + j*nb_k);
            float * to = keys.data() + (size_t) j/LANES*s.d*LANES + j%LANES;
            for (int c = 0; c < s.d; ++c) { to[(size_t) c*LANES] = x[c]; }
            memcpy(values.data() + (size_t) j*width, value + j*nb_v, s.d*sizeof(float));
        }
    }

    HALFV_TARGET void attend(const char * q, size_t nb_q, int n, float scale, float * dst, size_t dst_row) override {
        const int rows = (n + ROWS - 1)/ROWS*ROWS;
        std::fill(queries.begin(), queries.end(), 0.0f);
        std::fill(out.begin(), out.end(), 0.0f);
        for (int i = 0; i < n; ++i) {
            const float * x = (const float *) (q + i*nb_q);
            for (int c = 0; c < s.d; ++c) { queries[(size_t) i*s.d + c] = x[c]*scale*1.44269504f; } // the exponential is of base 2
        }
        float top[ATTEND_TILE], sum[ATTEND_TILE];
        std::fill(top, top + rows, -INFINITY);
        std::fill(sum, sum + rows, 0.0f);
        for (int first = 0; first < n_keys; first += CHUNK) {
            const int count = std::min(CHUNK, n_keys - first);
            for (int j = 0; j < count; j += WIDE*LANES) {
                const float * k = keys.data() + (size_t) (first + j)*s.d;
                const int blocks = std::min(WIDE, (count - j)/LANES);
                for (int i = 0; i < rows; i += ROWS) {
                    const float * x = queries.data() + (size_t) i*s.d;
                    float * to = score.data() + i*CHUNK + j;
                    if (blocks == WIDE) {
                        scores<WIDE>(x, s.d, k, to);
                    } else {
                        for (int b = 0; b < blocks; ++b) { scores<1>(x, s.d, k + (size_t) b*s.d*LANES, to + b*LANES); }
                    }
                }
            }
            for (int i = 0; i < rows; ++i) {
                weigh(i, first, count, top[i], sum[i]);
            }
            for (int b = 0; b < width; b += DEEP*LANES) {
                const int blocks = std::min(DEEP, (width - b)/LANES);
                for (int i = 0; i < rows; i += ROWS) {
                    const float * weight = score.data() + i*CHUNK;
                    float * to = out.data() + (size_t) i*width + b;
                    const float * v = values.data() + (size_t) first*width + b;
                    if (blocks == DEEP) {
                        mix<DEEP>(weight, v, count, width, to);
                    } else {
                        for (int c = 0; c < blocks; ++c) { mix<1>(weight, v + c*LANES, count, width, to + c*LANES); }
                    }
                }
            }
        }
        for (int i = 0; i < n; ++i) {
            for (int c = 0; c < s.d; ++c) { dst[i*dst_row + c] = out[(size_t) i*width + c]/sum[i]; }
        }
    }

private:
    // scores of a query become weights; what was added up before shrinks as the maximum grows
    HALFV_INLINE void weigh(int i, int first, int count, float & top, float & sum) {
        float * x = score.data() + i*CHUNK;
        std::fill(x + std::min(count, s.n_k - first), x + count, -INFINITY);
        vec most = all(top);
        for (int j = 0; j < count; j += LANES) {
            const vec y = load(x + j);
            most = y > most ? y : most;
        }
        const float new_top = most_of(most);
        vec total = {};
        for (int j = 0; j < count; j += LANES) {
            const vec y = exp2_of(load(x + j) - new_top);
            total += y;
            store(x + j, y);
        }
        if (new_top > top && first > 0) {
            const float less = exp2_of(all(top - new_top))[0];
            sum *= less;
            for (int c = 0; c < width; c += LANES) { store(&out[(size_t) i*width + c], load(&out[(size_t) i*width + c])*less); }
        }
        top = new_top;
        sum += sum_of(total);
    }

    const heads s;
    const int width, n_keys; // in whole vectors
    std::vector<float> keys, values, queries, out, score;
};

#undef HALFV_INLINE
