#include "halfv-attend.h"
#include "halfv-attend-kernel.h"
#include "halfv-cpu.h"
#include "halfv-tiles.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace halfv {

// behind what ggml keeps in an operation's parameters
struct attend_params {
    attend_with with;
    float       scale;

    static char * place(ggml_tensor * op) { return (char *) op->op_params + GGML_MAX_OP_PARAMS - sizeof(attend_params); }

    void put(ggml_tensor * op) const { memcpy(place(op), this, sizeof(*this)); }

    static attend_params of(ggml_tensor * op) {
        attend_params params;
        memcpy(&params, place(op), sizeof(params));
        return params;
    }
};

#ifdef HALFV_ATTEND

#define HALFV_LANES  8
#define HALFV_TARGET __attribute__((target("avx2,fma")))
namespace avx2 {
#include "halfv-attend-f32.h"
}
#undef HALFV_LANES
#undef HALFV_TARGET

#define HALFV_LANES  16
#define HALFV_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
namespace avx512 {
#include "halfv-attend-f32.h"
}

static std::unique_ptr<attend_kernel> make_kernel(attend_with with, const heads & s) {
    switch (with) {
        case attend_with::TILES:  return make_bf16_kernel(s, true);
        case attend_with::BF16:   return make_bf16_kernel(s, false);
        case attend_with::AVX512: return std::make_unique<avx512::kernel>(s);
        default:                  return std::make_unique<avx2::kernel>(s);
    }
}

bool can_attend(attend_with with) {
    switch (with) {
        case attend_with::TILES:  return can_tile();
        case attend_with::BF16:   return cpu_has(cpu_part::AVX512_BF16);
        case attend_with::AVX512: return cpu_has(cpu_part::AVX512);
        case attend_with::AVX2:   return cpu_has(cpu_part::AVX2);
        default:                  return true;
    }
}

static void attend_op(ggml_tensor * dst, int ith, int nth, void *) {
    constexpr int64_t PER_JOB = 512; // queries that one thread takes at a time; it packs the keys for them

    const ggml_tensor * q = dst->src[0], * k = dst->src[1], * v = dst->src[2];
    const auto [with, scale] = attend_params::of(dst);

    const heads s = { (int) q->ne[0], (int) k->ne[2] };
    const int64_t n_head = q->ne[1], n_q = q->ne[2], group = n_head/k->ne[1];
    const int64_t jobs_per_head = (n_q + PER_JOB - 1)/PER_JOB;
    const int64_t n_jobs = jobs_per_head*n_head*q->ne[3];

    const auto kernel = make_kernel(with, s);
    int64_t packed = -1;
    for (int64_t job = n_jobs*ith/nth; job < n_jobs*(ith + 1)/nth; ++job) {
        const int64_t head = job/jobs_per_head % n_head, part = job/jobs_per_head/n_head;
        const int64_t first = job % jobs_per_head*PER_JOB, last = std::min(first + PER_JOB, n_q);
        const int64_t source = part*k->ne[1] + head/group;
        if (source != packed) {
            packed = source;
            kernel->pack((const char *) k->data + head/group*k->nb[1] + part*k->nb[3], k->nb[2],
                         (const char *) v->data + head/group*v->nb[1] + part*v->nb[3], v->nb[2]);
        }
        for (int64_t i = first; i < last; i += ATTEND_TILE) {
            const char * from = (const char *) q->data + head*q->nb[1] + i*q->nb[2] + part*q->nb[3];
            float * to = (float *) dst->data + (part*n_q + i)*dst->ne[0] + head*q->ne[0];
            kernel->attend(from, q->nb[2], (int) std::min<int64_t>(ATTEND_TILE, last - i), scale, to, dst->ne[0]);
        }
    }
}

#else

bool can_attend(attend_with with) { return with == attend_with::GGML; }

static void attend_op(ggml_tensor *, int, int, void *) {
    GGML_ABORT("halfv: this CPU has no such instructions");
}

#endif

attend_with best_attend() {
    for (attend_with with : { attend_with::TILES, attend_with::BF16, attend_with::AVX512, attend_with::AVX2 }) {
        if (can_attend(with)) { return with; }
    }
    return attend_with::GGML;
}

ggml_tensor * attend_cpu(ggml_context * ctx, attend_with with, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, float scale) {
    ggml_tensor * args[] = { q, k, v };
    ggml_tensor * out = ggml_custom_4d(ctx, GGML_TYPE_F32, q->ne[0]*q->ne[1], q->ne[2]*q->ne[3], 1, 1, args, 3, attend_op, GGML_N_TASKS_MAX, nullptr);
    attend_params{ with, scale }.put(out);
    return out;
}

} // namespace halfv
