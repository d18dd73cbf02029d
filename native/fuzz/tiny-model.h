#pragma once

// A random model of a few kilobytes, made when a fuzz target starts, and how to talk to it.

#include "halfv.h"

#include "ggml.h"
#include "gguf.h"

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <unistd.h>
#include <vector>

namespace fuzz {

constexpr int n_layer = 4, n_embd = 16, n_head = 2, n_ff = 16, n_vocab = 40;

inline void require(bool condition, const char * what) {
    if (!condition) {
        fprintf(stderr, "fuzz target: %s\n", what);
        abort();
    }
}

// A file of this process, away when it ends.
inline std::string file_name(const char * what) {
    static const std::string folder = [] {
        char name[] = "/tmp/halfv-fuzz-XXXXXX";
        require(mkdtemp(name) != nullptr, "cannot make a temporary folder");
        return std::string(name);
    }();
    static std::vector<std::string> files;
    if (files.empty()) {
        atexit([] {
            for (const auto & file : files) { unlink(file.c_str()); }
            rmdir(folder.c_str());
        });
    }
    files.push_back(folder + "/" + what);
    return files.back();
}

// `describe` adds the profile
inline void write_model(const std::string & path, const std::function<void(gguf_context *)> & describe) {
    gguf_context * out = gguf_init_empty();
    gguf_set_val_str(out, "general.architecture", "llama");
    gguf_set_val_u32(out, "llama.block_count", n_layer);
    gguf_set_val_u32(out, "llama.context_length", 4096);
    gguf_set_val_u32(out, "llama.embedding_length", n_embd);
    gguf_set_val_u32(out, "llama.feed_forward_length", n_ff);
    gguf_set_val_u32(out, "llama.attention.head_count", n_head);
    gguf_set_val_f32(out, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_val_u32(out, "llama.vocab_size", n_vocab);
    gguf_set_val_str(out, "tokenizer.ggml.model", "no_vocab");
    describe(out);

    ggml_context * tensors = ggml_init({ (size_t) 4 << 20, nullptr, false });
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    const auto add = [&](const std::string & name, int64_t columns, int64_t rows) {
        ggml_tensor * t = rows > 0 ? ggml_new_tensor_2d(tensors, GGML_TYPE_F32, columns, rows) : ggml_new_tensor_1d(tensors, GGML_TYPE_F32, columns);
        ggml_set_name(t, name.c_str());
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            ((float *) t->data)[i] = rows > 0 ? 0.3f*normal(rng) : 1.0f;
        }
        gguf_add_tensor(out, t);
    };
    add("token_embd.weight", n_embd, n_vocab);
    add("output.weight",     n_embd, n_vocab);
    add("output_norm.weight", n_embd, 0);
    for (int il = 0; il < n_layer; ++il) {
        const std::string block = "blk." + std::to_string(il) + ".";
        for (const char * norm : { "attn_norm", "ffn_norm" }) { add(block + norm + ".weight", n_embd, 0); }
        for (const char * matrix : { "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down" }) {
            add(block + matrix + ".weight", n_embd, n_embd); // n_ff is n_embd
        }
    }
    require(gguf_write_to_file(out, path.c_str(), false), "cannot write the model");
    ggml_free(tensors);
    gguf_free(out);
}

inline void write_profile(gguf_context * out, const char * rest, float update) {
    gguf_set_val_u32(out, "halfv.version", 1);
    gguf_set_val_u32(out, "halfv.ivr.layer", 1);
    gguf_set_val_f32(out, "halfv.ivr.keep", 0.5f);
    gguf_set_val_f32(out, "halfv.ivr.anchors", 0.3f);
    gguf_set_val_u32(out, "halfv.ssr.layer", 2);
    gguf_set_val_f32(out, "halfv.ssr.update", update);
    gguf_set_val_str(out, "halfv.ssr.rest", rest);
    gguf_set_val_u32(out, "halfv.min_visual_tokens", 4);
    gguf_set_val_f32(out, "halfv.ivr.bias", 0.5f);
}

inline llama_model * load_model(const std::string & path) {
    llama_model_params params = llama_model_default_params();
    return llama_model_load_from_file(path.c_str(), params);
}

inline llama_context * make_context(llama_model * model, bool unified) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = unified ? 256 : 512;
    params.n_batch         = 64;
    params.n_ubatch        = 32;
    params.n_seq_max       = 2;
    params.kv_unified      = unified;
    params.n_threads       = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return llama_init_from_model(model, params);
}

// n tokens where the sequence ends: a picture, or text whose last token asks for output
inline int feed(llama_context * ctx, llama_seq_id seq, int n, bool picture, bool asks) {
    llama_batch batch = llama_batch_init(n, picture ? n_embd : 0, 1);
    const llama_pos start = llama_memory_seq_pos_max(llama_get_memory(ctx), seq) + 1;
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        if (picture) {
            for (int j = 0; j < n_embd; ++j) { batch.embd[i*n_embd + j] = (float) ((i*7 + j*13 + i*j) % 17) - 8.0f; }
        } else {
            batch.token[i] = 3 + (i + start) % 30;
        }
        batch.pos[i]       = start + i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = seq;
        batch.logits[i]    = asks && i == n - 1;
    }
    const int rc = llama_decode(ctx, batch);
    llama_batch_free(batch);
    return rc;
}

inline void be_quiet() {
    if (!getenv("HALFV_FUZZ_LOG")) {
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    }
}

// Bytes that become choices; zeros when they are used up.
struct choices {
    const uint8_t * data;
    size_t size;

    bool left() const { return size > 0; }
    uint32_t take(int n_bytes) {
        uint32_t value = 0;
        for (int i = 0; i < n_bytes; ++i) {
            value = value << 8 | (size > 0 ? *data : 0);
            if (size > 0) { ++data; --size; }
        }
        return value;
    }
    uint32_t below(uint32_t n) { return take(n > 256 ? 2 : 1) % n; }
    std::string text(size_t n) {
        std::string out((const char *) data, n < size ? n : size);
        data += out.size();
        size -= out.size();
        return out;
    }
};

} // namespace fuzz
