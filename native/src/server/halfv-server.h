#pragma once

// What llama-server asks of us: hooks in tools/server call these. Nothing here is part of libllama or libmtmd.

#include "halfv-mtmd.h"
#include "json.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

struct llama_context;
struct llama_model;
struct mtmd_batch;
struct mtmd_bitmap;
struct mtmd_context;
struct mtmd_context_params;
struct server_tokens;

namespace halfv::server {

// A request's own way to prune: "halfv": false, or {"keep": share}.
struct wish {
    bool  enabled = true;
    float keep    = 0.0f; // 0: as the profile says

    static wish of(const common_json & request); // throws std::invalid_argument with a sentence
    std::string name() const; // "" for none
};

// From here to its end this thread prepares a request with such a wish.
struct preparing {
    explicit preparing(const wish & w);
    ~preparing();
};

// Pictures with another wish are other pictures to the prompt cache, which then never mixes them up, and so is a picture that
// comes again in a prompt to the encoder's cache, which would take its tiles for more tiles of the first.
void begin_prompt();
void name_media(mtmd_bitmap * bitmap);
inline const char * const NAME_MARK = "+halfv."; // what follows the picture's own id

// What the pictures of a request took.
struct figures {
    int32_t  outcome = 0, reason = 0;        // enum halfv_outcome, halfv_reason
    uint32_t n_images = 0, n_visual = 0, n_kept = 0, n_deep = 0;
    uint32_t n_encoded = 0, n_remembered = 0; // chunks that went through the encoder, and that the cache had
    uint32_t n_given = 0;                     // tokens of those
    uint32_t n_shrunk = 0;                    // that they lost when they were made smaller
    int64_t  us_encode = 0, us_select = 0;
    float    encoder_share = 0.0f;            // of the last picture that was to be encoded

    void begin(llama_context * ctx, int32_t seq, const wish & w); // once per request, before its first batch
    void read(const llama_context * ctx, int32_t seq);
    void finish(const llama_context * ctx, int32_t seq); // read, and counted in metrics()
    void add_timings(common_json & timings, double prompt_ms) const;
    void add_usage(common_json & details) const;

private:
    bool    begun = false;
    int64_t us_select_before = 0;
};

std::string metrics(); // for Prometheus

//
// the encoder's cache: embeddings by what a picture holds and how it is encoded, for all slots and requests
//

// Once the encoder is loaded. false: a setting in the environment is not valid, and the log says which.
bool remember_encoder(const std::string & mmproj, const mtmd_context_params & params, const llama_model * model);
// of the chunk that begins at a token: remembered, or it will be once those from another one on are encoded
bool is_remembered(const server_tokens & tokens, size_t from, size_t at);
// of the chunk that begins at a token: remembered, or from the batch that was just encoded; null: neither.
// They are valid until this thread's next call.
float * embeddings(mtmd_batch * batch, const server_tokens & tokens, size_t at, figures & f);
int32_t encode(mtmd_batch * batch, figures & f); // as mtmd_batch_encode; says how far it is, where that takes long

// While it lives, what this thread encodes is told of as well.
struct watching {
    explicit watching(std::function<void()> tell);
    ~watching();
};

//
// what a request may make the server load
//

void check_media(const std::vector<std::vector<uint8_t>> & files); // throws std::invalid_argument
bool is_url(const std::string & text);
std::vector<uint8_t> fetch(const std::string & url); // throws std::invalid_argument for what is not allowed or does not come

} // namespace halfv::server
