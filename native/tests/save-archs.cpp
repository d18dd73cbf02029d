// save-archs              names the architectures of which llama.cpp's own test makes tiny random models
// save-archs DIR NAME     writes DIR/dense.gguf, DIR/moe.gguf or both, of six layers at least, so that there is something to cut

#define main upstream_main
#include "test-llama-archs.cpp"
#undef main

static uint32_t layers_of(llm_arch arch) {
    return arch == LLM_ARCH_NEMOTRON_H || arch == LLM_ARCH_NEMOTRON_H_MOE ? 7 : 6; // one in three of its layers has attention
}

// what is given layer by layer goes on for the new ones
static void repeat(gguf_context * gguf, const std::string & key, uint32_t n_layer, uint32_t n_wanted) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (gguf_get_kv_type(gguf, id) != GGUF_TYPE_ARRAY || gguf_get_arr_n(gguf, id) != n_layer || key.find("sections") != std::string::npos) {
        return;
    }
    const gguf_type type = gguf_get_arr_type(gguf, id);
    if (type != GGUF_TYPE_UINT32 && type != GGUF_TYPE_INT32 && type != GGUF_TYPE_FLOAT32) {
        return;
    }
    const auto * from = (const uint32_t *) gguf_get_arr_data(gguf, id);
    std::vector<uint32_t> values;
    for (uint32_t i = 0; i < n_wanted; ++i) { values.push_back(from[i % n_layer]); }
    gguf_set_arr_data(gguf, key.c_str(), type, values.data(), values.size());
}

static void deepen(gguf_context * gguf, llm_arch arch) {
    const std::string prefix = std::string(llm_arch_name(arch)) + ".";
    const int64_t count = gguf_find_key(gguf, (prefix + "block_count").c_str());
    const uint32_t n_layer = gguf_get_val_u32(gguf, count);
    const uint32_t n_wanted = layers_of(arch);
    if (n_layer >= n_wanted) {
        return;
    }
    std::vector<std::string> keys;
    for (int64_t i = 0; i < gguf_get_n_kv(gguf); ++i) { keys.push_back(gguf_get_key(gguf, i)); }
    for (const auto & key : keys) {
        if (key.rfind(prefix, 0) == 0) { repeat(gguf, key, n_layer, n_wanted); }
    }
    gguf_set_val_u32(gguf, (prefix + "block_count").c_str(), n_wanted);
}

static bool exists(llm_arch arch, bool moe) {
    return arch != LLM_ARCH_UNKNOWN && arch != LLM_ARCH_EAGLE3 && arch != LLM_ARCH_DFLASH && arch_supported(arch) &&
           llama_model_saver_supports_arch(arch) && (moe ? moe_implemented(arch) : !moe_mandatory(arch));
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const std::string wanted = argc == 3 ? argv[2] : "";
    for (const llm_arch arch : llm_arch_all()) {
        if (!exists(arch, false) && !exists(arch, true)) {
            continue;
        }
        const std::string name = llm_arch_name(arch);
        if (argc == 1) {
            printf("%s\n", name.c_str());
        }
        for (const bool moe : { false, true }) {
            if (name != wanted || !exists(arch, moe)) {
                continue;
            }
            const std::string path = std::string(argv[1]) + "/" + (moe ? "moe" : "dense") + ".gguf";
            try {
                gguf_context_ptr gguf = get_gguf_ctx(arch, moe);
                deepen(gguf.get(), arch);
                auto made = get_model_and_ctx(gguf.get(), nullptr, 1, 0.1f, {});
                llama_model_save_to_file(made.first.get(), path.c_str());
            } catch (const std::exception & err) {
                fprintf(stderr, "%s: %s\n", name.c_str(), err.what());
                return 1;
            }
        }
    }
    return 0;
}
