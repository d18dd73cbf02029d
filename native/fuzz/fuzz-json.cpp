// HALFV_PROFILE as JSON: whatever it says, the model loads, and a context is made or refused in one sentence.

#include "tiny-model.h"

using namespace fuzz;

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    be_quiet();
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const std::string path = [] {
        const std::string name = file_name("json.gguf");
        write_model(name, [](gguf_context *) {});
        return name;
    }();
    // what does not begin like this names a file
    const std::string text = "{" + std::string((const char *) data, size);
    setenv("HALFV_PROFILE", text.c_str(), 1);
    llama_model * model = load_model(path);
    unsetenv("HALFV_PROFILE");
    require(model != nullptr, "a profile keeps a model from loading");
    llama_context * ctx = make_context(model, true);
    if (ctx) {
        require(feed(ctx, 0, 3, false, false) == 0 && feed(ctx, 0, 12, true, false) == 0, "cannot decode");
        const int rc = feed(ctx, 0, 2, false, true);
        require(rc == 0 || rc == 1, "cannot decode");
        llama_free(ctx);
    } else {
        for (const char * c = halfv_last_error(); *c; ++c) {
            require((unsigned char) *c >= ' ', "a control character in an error");
        }
    }
    llama_model_free(model);
    return 0;
}
