// What a batch of a waiting sequence costs must not depend on how large the context is or how much waits already. Counts
// bytes that llama_decode allocates, as they are the same on a busy machine.
//
// batch-cost MODEL     a small model of a supported architecture, at least 5 layers, without a profile

#include "capi.h"

#include <algorithm>
#include <atomic>
#include <new>

static std::atomic<size_t> n_allocated{ 0 };

void * operator new(size_t size) {
    n_allocated += size;
    void * p = malloc(size);
    if (!p) {
        throw std::bad_alloc();
    }
    return p;
}
void operator delete(void * p) noexcept { free(p); }
void operator delete(void * p, size_t) noexcept { free(p); }

static size_t bytes_of_token(struct llama_context * ctx, llama_pos * pos) {
    const size_t before = n_allocated;
    CHECK(feed(ctx, false, 1, false, pos) == 0);
    return n_allocated - before;
}

// the least of some tokens: now and then a list has to grow
static size_t bytes_per_token(struct llama_context * ctx, llama_pos * pos) {
    size_t least = SIZE_MAX;
    for (int i = 0; i < 8; ++i) {
        least = std::min(least, bytes_of_token(ctx, pos));
    }
    return least;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 77;
    }
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    require(model != NULL, "the model does not load");
    const struct halfv_profile profile = test_profile(model);
    CHECK_RC(halfv_model_set_profile(model, &profile), HALFV_OK);

    size_t small = 0;
    for (const uint32_t n_ctx : { 1024, 65536 }) {
        struct llama_context_params params = llama_context_default_params();
        params.n_ctx     = n_ctx;
        params.n_batch   = params.n_ubatch = 64;
        params.n_threads = params.n_threads_batch = 1;
        struct llama_context * ctx = llama_init_from_model(model, params);
        require(ctx != NULL, "no context");

        llama_pos pos = prompt_without_question(ctx, N_IMG);
        const size_t first = bytes_per_token(ctx, &pos);
        for (int i = 0; i < 600; ++i) {
            CHECK(feed(ctx, false, 1, false, &pos) == 0);
        }
        const size_t late = bytes_per_token(ctx, &pos);
        fprintf(stderr, "n_ctx %u: %zu bytes for a token, %zu behind 600 more\n", n_ctx, first, late);
        CHECK(late < first + 16*1024);
        if (small == 0) {
            small = first;
        }
        CHECK(first < small + 16*1024);
        llama_free(ctx);
    }
    llama_model_free(model);
    fprintf(stderr, "%d checks, %d failed\n", n_checked, n_failed);
    return n_failed == 0 ? 0 : 1;
}
