#pragma once

// What the C++ programs share: checks on random inputs that say with which seed they failed.

#include <cstdio>

static unsigned seed = 1;
static int n_failed = 0;

#define CHECK(x)                                                                                                       \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            fprintf(stderr, "%s:%d: %s is false (seed %u)\n", __FILE__, __LINE__, #x, seed);                           \
            ++n_failed;                                                                                                \
        }                                                                                                              \
    } while (0)
