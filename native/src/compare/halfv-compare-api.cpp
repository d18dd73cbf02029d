#include "halfv-api.h"

#include "halfv-compare.h"

using halfv::fail;
using halfv::with_prefill;

int32_t halfv_set_choice(llama_context * ctx, int32_t choice, uint32_t seed) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (choice < HALFV_CHOICE_HALFV || choice > HALFV_CHOICE_DART) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: choice " + std::to_string(choice) + " does not exist: it must be 0 to 4");
        }
        if (prefill.memory.any_lazy()) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: a picture waits for its question: change the choice before it or after");
        }
        if (choice != prefill.choice) {
            prefill.memory.forget_questions(); // the keys kept for them may be rotated, or not
        }
        prefill.choice = choice;
        prefill.choice_seed = seed;
        return HALFV_OK;
    });
}

int32_t halfv_hold(llama_context * ctx, bool hold) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        prefill.hold(hold);
        return HALFV_OK;
    });
}

int32_t halfv_observe(llama_context * ctx, const uint8_t * freeze, halfv_observer observer, void * user) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (!observer) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the observer is null");
        }
        const int32_t rc = prefill.observe(freeze, observer, user);
        return rc == HALFV_ERR_ARGUMENT ? fail(rc, "halfv: a prompt to observe must end with text, and memory must be empty") :
               rc == HALFV_ERR_UNSUPPORTED ? fail(rc, "halfv: a model whose last norm is no RMS norm is not observed") :
               rc == HALFV_ERR_MEMORY   ? fail(rc, "halfv: no room in the KV cache or in memory for the prompt") :
               rc == HALFV_ERR_COMPUTE  ? fail(rc, "halfv: observing failed, was aborted or was stopped by the observer") : rc;
    });
}
