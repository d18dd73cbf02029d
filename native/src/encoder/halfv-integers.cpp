#include "halfv-integers.h"
#include "halfv-cpu.h"

// AVX-VNNI came with GCC 11; Clang passes as an older one, and has it
#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 11))
#define HALFV_INTEGERS
#endif

#ifdef HALFV_INTEGERS

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>

#include <immintrin.h>

#endif

namespace halfv {

#ifdef HALFV_INTEGERS

constexpr int     BLOCK = 32, BLOCK_BYTES = 34; // of q8_0: a scale in half precision, then the numbers
constexpr int64_t COLUMN_BYTES = 24 << 10;      // of the matrix, what a thread holds in its first cache
constexpr int64_t ROW_BYTES = 768 << 10;        // of x, what it holds in its second

#define HALFV_LANES  8
#define HALFV_TARGET __attribute__((target("avx2,fma,f16c,avxvnni")))
namespace avx_vnni {
typedef int32_t lanes __attribute__((vector_size(32)));
HALFV_TARGET inline __attribute__((always_inline)) lanes dot(lanes sums, lanes u, lanes s) {
    return (lanes) _mm256_dpbusd_avx_epi32((__m256i) sums, (__m256i) u, (__m256i) s);
}
#include "halfv-integer-kernel.h"
}
#undef HALFV_LANES
#undef HALFV_TARGET

#define HALFV_LANES  16
#define HALFV_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
namespace avx512_vnni {
typedef int32_t lanes __attribute__((vector_size(64)));
HALFV_TARGET inline __attribute__((always_inline)) lanes dot(lanes sums, lanes u, lanes s) {
    return (lanes) _mm512_dpbusd_epi32((__m512i) sums, (__m512i) u, (__m512i) s);
}
#include "halfv-integer-kernel.h"
}

bool can_multiply_integers(integers_with with) {
    switch (with) {
        case integers_with::AVX512_VNNI: return cpu_has(cpu_part::AVX512_VNNI);
        case integers_with::AVX_VNNI:    return cpu_has(cpu_part::AVX_VNNI);
        default:                         return true;
    }
}

template <typename Product>
static ggml_tensor * two_operations(ggml_context * ctx, ggml_tensor * matrix, ggml_tensor * x) {
    const int64_t bytes = Product::bytes(x->ne[0], x->ne[1]);
    ggml_tensor * rounded = ggml_custom_4d(ctx, GGML_TYPE_I8, bytes, 1, 1, 1, &x, 1, Product::round, GGML_N_TASKS_MAX, nullptr);
    ggml_tensor * args[] = { matrix, rounded };
    return ggml_custom_4d(ctx, GGML_TYPE_F32, matrix->ne[1], x->ne[1], 1, 1, args, 2, Product::multiply, GGML_N_TASKS_MAX, nullptr);
}

ggml_tensor * multiply_integers(ggml_context * ctx, integers_with with, ggml_tensor * matrix, ggml_tensor * x) {
    return with == integers_with::AVX512_VNNI ? two_operations<avx512_vnni::product>(ctx, matrix, x)
                                              : two_operations<avx_vnni::product>(ctx, matrix, x);
}

#else

bool can_multiply_integers(integers_with with) { return with == integers_with::NONE; }

ggml_tensor * multiply_integers(ggml_context * ctx, integers_with, ggml_tensor * matrix, ggml_tensor * x) {
    return ggml_mul_mat(ctx, matrix, x);
}

#endif

integers_with best_integers() {
    for (integers_with with : { integers_with::AVX512_VNNI, integers_with::AVX_VNNI }) {
        if (can_multiply_integers(with)) { return with; }
    }
    return integers_with::NONE;
}

bool suits_integers(const ggml_tensor * matrix, const ggml_tensor * x) {
    constexpr int64_t MANY_ROWS = 16; // for fewer, laying out the matrix costs more than it saves
    return best_integers() != integers_with::NONE && matrix->type == GGML_TYPE_Q8_0 && x->type == GGML_TYPE_F32 &&
           ggml_n_dims(matrix) <= 2 && ggml_n_dims(x) <= 2 && x->ne[1] >= MANY_ROWS &&
           matrix->nb[0] == ggml_type_size(GGML_TYPE_Q8_0) && x->nb[0] == sizeof(float);
}

} // namespace halfv
