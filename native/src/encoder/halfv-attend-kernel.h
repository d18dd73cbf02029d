#pragma once

#include <cstddef>
#include <memory>

#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 10))
#define HALFV_ATTEND
#endif

namespace halfv {

constexpr int ATTEND_TILE = 64; // queries that share a pass over the keys

struct heads {
    int d, n_k;
};

// Attention of one head, by one thread.
class attend_kernel {
public:
    virtual ~attend_kernel() = default;

    // its keys and values, rows of floats that far apart
    virtual void pack(const char * key, size_t nb_k, const char * value, size_t nb_v) = 0;

    // n <= ATTEND_TILE queries against all of them
    virtual void attend(const char * q, size_t nb_q, int n, float scale, float * dst, size_t dst_row) = 0;
};

#ifdef HALFV_ATTEND
std::unique_ptr<attend_kernel> make_bf16_kernel(const heads & s, bool in_tiles);
#endif

} // namespace halfv
