#include "halfv-api.h"

#include "halfv-compare.h"
#include "halfv-policy.h"

#include "llama-model.h"

using halfv::fail;
using halfv::with_prefill;

int32_t halfv_set_choice(llama_context * ctx, int32_t choice, uint32_t seed) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (choice < HALFV_CHOICE_HALFV || choice > HALFV_CHOICE_GIVEN) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: choice " + std::to_string(choice) + " does not exist: it must be 0 to 5");
        }
        if (choice == HALFV_CHOICE_GIVEN && !prefill.chooser) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: nobody is there to choose: call halfv_set_chooser first");
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

int32_t halfv_set_chooser(llama_context * ctx, halfv_chooser chooser, void * user) {
    return with_prefill(ctx, [&](halfv::prefill & prefill) -> int32_t {
        if (prefill.memory.any_lazy()) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: a picture waits for its question: change the chooser before it or after");
        }
        prefill.chooser = chooser;
        prefill.chooser_user = user;
        return HALFV_OK;
    });
}

int32_t halfv_token_embedding(const llama_model * model, int32_t token, float * row) {
    return halfv::guarded([&]() -> int32_t {
        if (!model || !row || token < 0 || token >= (int32_t) model->vocab.n_tokens() || !model->tok_embd) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: token " + std::to_string(token) + " has no embedding: it must be one of the model's vocabulary");
        }
        halfv::token_embedding(model->tok_embd, token, row);
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
