#include "halfv-frames.h"

#include "halfv-mtmd.h"

#include <cinttypes>
#include <cstdio>
#include <new>

namespace halfv {

static thread_local halfv_frames * followed = nullptr;

seen_frames & frames_of(seen_frames & own) {
    return followed ? followed->seen : own;
}

void name_frame(std::string & id, const patch_map * map) {
    if (id.empty() || !map) {
        return;
    }
    uint64_t sum = 0xcbf29ce484222325ull;
    for (const int32_t at : map->entered) {
        for (int shift = 0; shift < 32; shift += 8) { sum = (sum ^ ((at >> shift) & 0xff))*0x100000001b3ull; }
    }
    char text[17];
    snprintf(text, sizeof(text), "%016" PRIx64, sum);
    id += std::string("+halfv.frames=") + text;
}

} // namespace halfv

halfv_frames * halfv_frames_init(void) {
    return new (std::nothrow) halfv_frames;
}

void halfv_frames_free(halfv_frames * frames) {
    if (halfv::followed == frames) {
        halfv::followed = nullptr;
    }
    delete frames;
}

void halfv_follow_frames(halfv_frames * frames) {
    halfv::followed = frames;
}
