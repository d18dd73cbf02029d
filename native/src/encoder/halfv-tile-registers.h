#pragma once

// The tile registers of AMX: eight, of 16 rows of 64 bytes. Compiled wherever the compiler knows them, used where can_tile().

#if defined(__linux__) && defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 11))
#define HALFV_TILES

#include <algorithm>
#include <cstdint>

#include <immintrin.h>

#define HALFV_TILE_TARGET __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace halfv {

struct tile_shapes {
    uint8_t  palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {}; // of a row
    uint8_t  rows[16] = {};
};
static_assert(sizeof(tile_shapes) == 64, "as the processor reads it");

// GCC's intrinsics do not tell the compiler that they read and write memory: between its own accesses and theirs.
inline void tile_fence() { __asm__ volatile("" : : : "memory"); }

// until _tile_release()
HALFV_TILE_TARGET inline void begin_tiles() {
    tile_shapes shapes;
    std::fill(shapes.bytes, shapes.bytes + 8, 64);
    std::fill(shapes.rows, shapes.rows + 8, 16);
    __asm__ volatile("" : : "r"(&shapes) : "memory"); // as with tile_fence()
    _tile_loadconfig(&shapes);
}

} // namespace halfv

#endif
