#pragma once

#include "halfv-prefill.h"

#include "llama-context.h"

#include <exception>
#include <new>
#include <string>

// What the functions of the C ABI share.
namespace halfv {

// sets halfv_last_error(), "" to forget it, and gives the code back
int32_t fail(int32_t code, std::string text);

// runs f so that nothing crosses the C boundary
template <typename F>
int32_t guarded(F && f) {
    try {
        fail(HALFV_OK, "");
        return f();
    } catch (const std::bad_alloc &) {
        return fail(HALFV_ERR_MEMORY, "halfv: out of host memory");
    } catch (const std::exception & err) {
        return fail(HALFV_ERR_ARGUMENT, err.what());
    }
}

// the same, with the context's prefill
template <typename F>
int32_t with_prefill(const llama_context * ctx, F && f) {
    return guarded([&]() -> int32_t {
        if (!ctx) {
            return fail(HALFV_ERR_ARGUMENT, "halfv: the context is null");
        }
        if (!ctx->halfv_prefill) {
            return fail(HALFV_ERR_UNSUPPORTED, "halfv: this context runs unpruned: its model has no profile, or HALFV=off is set, or its architecture is not supported");
        }
        return f(*ctx->halfv_prefill);
    });
}

} // namespace halfv
