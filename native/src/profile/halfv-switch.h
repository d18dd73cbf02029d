#pragma once

#include <cstdlib>
#include <cstring>

namespace halfv {

// HALFV=off or HALFV=0 in the environment: everything is as llama.cpp does it
inline bool switched_off() {
    const char * env = getenv("HALFV");
    return env && (strcmp(env, "off") == 0 || strcmp(env, "0") == 0);
}

} // namespace halfv
