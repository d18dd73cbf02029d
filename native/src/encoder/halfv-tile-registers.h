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
    uint8_t  palette = 0, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {}; // of a row
    uint8_t  rows[16] = {};
};
static_assert(sizeof(tile_shapes) == 64, "as the processor reads it");

// GCC's intrinsics do not tell the compiler that they read and write memory: between its own accesses and theirs.
inline void tile_fence() { __asm__ volatile("" : : : "memory"); }

// Registers of ours as long as it lives. Then they are as they were: ggml sets its own once for a thread.
class tile_use {
public:
    HALFV_TILE_TARGET tile_use() {
        tile_fence();
        _tile_storeconfig(&before);
        __asm__ volatile("" : : "r"(&before) : "memory");
        tile_shapes ours;
        ours.palette = 1;
        std::fill(ours.bytes, ours.bytes + 8, 64);
        std::fill(ours.rows, ours.rows + 8, 16);
        load(ours);
    }

    HALFV_TILE_TARGET ~tile_use() {
        if (before.palette) { load(before); } else { _tile_release(); }
    }

    tile_use(const tile_use &) = delete;
    tile_use & operator=(const tile_use &) = delete;

private:
    HALFV_TILE_TARGET static void load(const tile_shapes & shapes) {
        __asm__ volatile("" : : "r"(&shapes) : "memory"); // as with tile_fence()
        _tile_loadconfig(&shapes);
    }

    tile_shapes before;
};

} // namespace halfv

#endif
