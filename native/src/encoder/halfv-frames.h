#pragma once

#include "halfv-pixel.h"

#include <string>

// Frames of one scene, from picture to picture of a text.
struct halfv_frames {
    halfv::seen_frames seen;
};

namespace halfv {

// Those that this thread's texts go on with (halfv_follow_frames), else the text's own.
seen_frames & frames_of(seen_frames & own);

// Tells apart, for whoever remembers pictures by their ids, what became of one behind different frames. map: null: it is whole.
void name_frame(std::string & id, const patch_map * map);

} // namespace halfv
