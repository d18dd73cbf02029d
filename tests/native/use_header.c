// A plain C program against halfv.h: it compiles, links and runs.
#include "halfv-compare.h"

#include <stdio.h>

int main(void) {
    struct halfv_profile profile = { .size = sizeof(profile) };
    if (halfv_profile_default(&profile, 24) != HALFV_OK || halfv_profile_validate(&profile, 24) != HALFV_OK) {
        fprintf(stderr, "%s\n", halfv_last_error());
        return 1;
    }
    profile.ivr_keep = 7.0f;
    if (halfv_profile_validate(&profile, 24) != HALFV_ERR_ARGUMENT) {
        fprintf(stderr, "a keep of 7 was accepted\n");
        return 1;
    }
    printf("%s\n", halfv_version());
    return 0;
}
