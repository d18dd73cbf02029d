// A model's profile while several threads set it, ask for it and make contexts. Meant for ThreadSanitizer.
//
// HALFV_PROFILE=JSON profile_threads

#include "halfv-profile.h"

#include "ggml-cpp.h"

#include <thread>

int main() {
    constexpr uint32_t n_layer = 8;
    halfv::model_profile profile;
    const gguf_context_ptr metadata(gguf_init_empty());
    profile.read(metadata.get());
    const auto repeat = [](auto && f) {
        for (int i = 0; i < 200; ++i) { f(); }
    };
    std::thread setter([&]() {
        repeat([&]() {
            profile.set(halfv::default_profile(n_layer));
            profile.set_stage_cells({ 1, 2, 3 });
            profile.read(metadata.get());
        });
    });
    std::thread asker([&]() {
        repeat([&]() { profile.exists() && profile.get(n_layer, true) && profile.stage_cells()[0]; });
    });
    repeat([&]() { profile.get(n_layer, true); });
    setter.join();
    asker.join();
    return profile.exists() ? 0 : 1;
}
