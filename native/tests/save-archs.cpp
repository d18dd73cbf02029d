// save-archs              names the architectures of which llama.cpp's own test makes tiny random models
// save-archs DIR NAME     writes DIR/dense.gguf, DIR/moe.gguf or both, of six layers at least, so that there is something to cut

#include <set>

#define main upstream_main
#include "test-llama-archs.cpp"
#undef main
#include "../src/llama-model.h"

// which that test leaves out, as llama.cpp cannot save them or its own checks do not hold there
static bool is_left_out(llm_arch arch) {
    return arch == LLM_ARCH_GEMMA3N || arch == LLM_ARCH_GEMMA4 || arch == LLM_ARCH_STEP35 || arch == LLM_ARCH_APERTUS || arch == LLM_ARCH_BITNET;
}

static uint32_t layers_of(llm_arch arch) {
    if (arch == LLM_ARCH_GEMMA4) {
        return 8; // the last two read the caches of those before them
    }
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

// In both the last two layers read the caches of those before them, as in the small ones, which have embeddings per layer as well.
static void complete_gemma4(gguf_context * gguf, bool moe) {
    const uint32_t n_layer = layers_of(LLM_ARCH_GEMMA4);
    std::vector<uint32_t> windows;
    for (uint32_t il = 0; il < n_layer; ++il) { windows.push_back(il % 2 == 0); }
    gguf_set_arr_data(gguf, "gemma4.attention.sliding_window_pattern", GGUF_TYPE_UINT32, windows.data(), windows.size());
    gguf_set_val_u32(gguf, "gemma4.block_count", n_layer);
    gguf_set_val_u32(gguf, "gemma4.attention.shared_kv_layers", 2);
    gguf_set_val_u32(gguf, "gemma4.embedding_length_per_layer_input", moe ? 0 : 32);
}

static void complete(gguf_context * gguf, llm_arch arch, bool moe) {
    deepen(gguf, arch);
    if (arch == LLM_ARCH_GEMMA4) { complete_gemma4(gguf, moe); }
    const float slopes[] = { 0.8f, 0.8f, 0.5f, 1e-6f };
    const char * const keys[] = { "alpha_n", "alpha_p", "beta", "eps" };
    for (int i = 0; i < 4 && arch == LLM_ARCH_APERTUS; ++i) {
        gguf_set_val_f32(gguf, (std::string("xielu.") + keys[i]).c_str(), slopes[i]);
    }
}

static void save(const gguf_context * gguf, const llama_model & model, const std::string & path) {
    if (!is_left_out(model.arch)) {
        llama_model_save_to_file(&model, path.c_str());
        return;
    }
    gguf_context_ptr all(gguf_init_empty());
    gguf_set_kv(all.get(), gguf);
    std::set<std::string> names;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (names.insert(name).second) { gguf_add_tensor(all.get(), tensor); }
    }
    gguf_write_to_file(all.get(), path.c_str(), false);
}

static bool exists(llm_arch arch, bool moe) {
    if (is_left_out(arch)) {
        return arch == LLM_ARCH_GEMMA4 || moe == (arch == LLM_ARCH_STEP35);
    }
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
                complete(gguf.get(), arch, moe);
                auto made = get_model_and_ctx(gguf.get(), nullptr, 1, 0.1f, {});
                save(gguf.get(), *made.first, path);
            } catch (const std::exception & err) {
                fprintf(stderr, "%s: %s\n", name.c_str(), err.what());
                return 1;
            }
        }
    }
    return 0;
}
