#pragma once

// Dot products of two sets of rows, with the widest vectors the running CPU has: libllama is built for a baseline CPU.

#include <cstddef>
#include <cstring>

namespace halfv {

#if defined(__clang__)
#define HALFV_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define HALFV_UNROLL _Pragma("GCC unroll 8")
#else
#define HALFV_UNROLL
#endif

#if defined(__GNUC__)
#define HALFV_INLINE inline __attribute__((always_inline))
template <int L> struct lanes {
    typedef float type __attribute__((vector_size(L * sizeof(float))));
};
#else
#define HALFV_INLINE inline
template <int L> struct lanes {
    struct type {
        float x[L];
        type operator*(const type & o) const {
            type r;
            for (int i = 0; i < L; ++i) {
                r.x[i] = x[i] * o.x[i];
            }
            return r;
        }
        void operator+=(const type & o) {
            for (int i = 0; i < L; ++i) {
                x[i] += o.x[i];
            }
        }
    };
};
#endif

template <int L> HALFV_INLINE float sum_of(const float * x) {
    typename lanes<L / 2>::type low, high;
    memcpy(&low, x, sizeof(low));
    memcpy(&high, x + L / 2, sizeof(high));
    low += high;
    float half[L / 2];
    memcpy(half, &low, sizeof(low));
    return sum_of<L / 2>(half);
}

template <> HALFV_INLINE float sum_of<2>(const float * x) {
    return x[0] + x[1];
}

// Up to MR x NR dots over d columns, all in registers. Each is summed in the same order whatever its place in the
// tile, so a similarity is one number however it comes about.
template <int L, int MR, int NR>
HALFV_INLINE void tile(const float * const * a, int na, const float * const * b, int nb, int d, float * out, size_t ld) {
    using vec = typename lanes<L>::type;
    vec acc[MR][NR] = {};
    const float * pa[MR];
    const float * pb[NR];
    HALFV_UNROLL
    for (int i = 0; i < MR; ++i) {
        pa[i] = a[i < na ? i : 0];
    }
    HALFV_UNROLL
    for (int j = 0; j < NR; ++j) {
        pb[j] = b[j < nb ? j : 0];
    }
    int x = 0;
    for (; x + L <= d; x += L) {
        vec va[MR];
        HALFV_UNROLL
        for (int i = 0; i < MR; ++i) {
            memcpy(&va[i], pa[i] + x, sizeof(vec));
        }
        HALFV_UNROLL
        for (int j = 0; j < NR; ++j) {
            vec vb;
            memcpy(&vb, pb[j] + x, sizeof(vec));
            HALFV_UNROLL
            for (int i = 0; i < MR; ++i) {
                acc[i][j] += va[i] * vb;
            }
        }
    }
    float sums[MR][NR][L]; // a copy, or the loops below would tie the accumulators to memory
    memcpy(sums, acc, sizeof(sums));
    for (int i = 0; i < MR && i < na; ++i) {
        for (int j = 0; j < NR && j < nb; ++j) {
            float s = sum_of<L>(sums[i][j]);
            for (int t = x; t < d; ++t) {
                s += pa[i][t] * pb[j][t];
            }
            out[i * ld + j] = s;
        }
    }
}

// out[i * ld + j] = a[i] . b[j]
template <int L, int MR, int NR>
HALFV_INLINE void dots_of(const float * const * a, int na, const float * const * b, int nb, int d, float * out, size_t ld) {
    for (int j = 0; j < nb; j += NR) {
        for (int i = 0; i < na; i += MR) {
            tile<L, MR, NR>(a + i, na - i, b + j, nb - j, d, out + i * ld + j, ld);
        }
    }
}

using dots_fn = void (*)(const float * const * a, int na, const float * const * b, int nb, int d, float * out, size_t ld);

#define HALFV_DOTS(name, attributes, L, MR, NR)                                                                        \
    attributes inline void name(const float * const * a, int na, const float * const * b, int nb, int d, float * out, size_t ld) { \
        dots_of<L, MR, NR>(a, na, b, nb, d, out, ld);                                                                  \
    }

// libllama is built for a baseline CPU; the tile sizes are what fits the registers of each
#if defined(__GNUC__) && defined(__x86_64__)
HALFV_DOTS(dots_avx512, __attribute__((target("avx512f"))), 16, 4, 6)
HALFV_DOTS(dots_avx2, __attribute__((target("avx2,fma"))), 8, 3, 4)
#endif
#if defined(__aarch64__)
HALFV_DOTS(dots_base, , 4, 4, 6)
#else
HALFV_DOTS(dots_base, , 4, 3, 4)
#endif

#undef HALFV_DOTS
#undef HALFV_INLINE
#undef HALFV_UNROLL

inline dots_fn best_dots() {
#if defined(__GNUC__) && defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        return dots_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return dots_avx2;
    }
#endif
    return dots_base;
}

} // namespace halfv
