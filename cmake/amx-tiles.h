// Forced into ggml's CPU backend (CMakeLists.txt). GCC's own _tile_loadconfig tells the optimizer that the instruction reads
// 8 bytes where it reads 64, so GCC drops the other stores and the processor faults on what happened to lie there.

#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

static inline void halfv_tile_loadconfig(const void * config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64]) config));
}

#undef  _tile_loadconfig
#define _tile_loadconfig halfv_tile_loadconfig
#endif
