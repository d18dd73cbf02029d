// what a request may make the server load, and how a picture is encoded once

#include "halfv-server.h"

#include "halfv-encoder-cache.h"
#include "halfv-fetch.h"
#include "halfv-keys.h"
#include "halfv-settings.h"

#include "build-info.h"
#include "halfv-mtmd.h"
#include "log.h"
#include "mtmd.h"
#include "server-common.h"

#define STB_IMAGE_STATIC
#define STB_IMAGE_IMPLEMENTATION
#include "stb/stb_image.h"

#include <iterator>
#include <optional>

namespace halfv::server {

//
// the encoder's cache
//

static constexpr int64_t CACHE_MB = 512, DISK_MB = 4096;
static constexpr int64_t MOST_PICTURES = 64, MOST_MEGAPIXELS = 100;

static struct {
    std::optional<encoder_cache> cache;
    std::string encoder; // which file and settings the embeddings are of
    size_t      n_embd = 0;
} remembered;

static uint64_t hash_of(const std::string & text) {
    uint64_t sum = 0xcbf29ce484222325ull;
    for (const unsigned char c : text) { sum = (sum ^ c)*0x100000001b3ull; }
    return sum;
}

static std::string hex_of(uint64_t number) {
    std::ostringstream hex;
    hex << std::hex << number;
    return hex.str();
}

// of a request, by the environment
struct media_limits {
    int64_t pictures   = number_setting("HALFV_MAX_PICTURES", MOST_PICTURES);
    int64_t megapixels = number_setting("HALFV_MAX_MEGAPIXELS", MOST_MEGAPIXELS);
    fetch_rules remote = fetch_rules::from_environment();
};

static const media_limits & limits() {
    static const media_limits res;
    return res;
}

bool remember_encoder(const std::string & mmproj, const mtmd_context_params & params, const llama_model * model) {
    namespace fs = std::filesystem;
    uint64_t most = 0, disk = 0;
    try {
        most = number_setting("HALFV_ENCODER_CACHE_MB", CACHE_MB) << 20;
        disk = number_setting("HALFV_ENCODER_CACHE_DISK_MB", DISK_MB) << 20;
        limits();
    } catch (const std::exception & error) {
        LOG_ERR("%s\n", error.what());
        return false;
    }
    const char * weights = "";
    halfv_attention attention = HALFV_ATTENTION_STOCK;
    halfv_get_encoder(&weights, &attention);
    halfv_profile profile = {};
    profile.size = sizeof(profile);
    if (halfv_model_get_profile(model, &profile) != HALFV_OK) {
        halfv_profile_default(&profile, 2);
    }

    std::error_code failed;
    std::ostringstream about;
    about << fs::absolute(mmproj, failed).string() << ' ' << fs::file_size(mmproj, failed) << ' '
          << fs::last_write_time(mmproj, failed).time_since_epoch().count() << ' ' << params.image_min_tokens << ' ' << params.image_max_tokens
          << ' ' << params.use_gpu << ' ' << params.flash_attn_type << ' ' << weights << ' ' << attention << ' '
          << halfv_version() << ' ' << llama_build_info();
    for (const profile_key & key : PROFILE_KEYS) {
        if (key.use == key_use::picture) {
            std::visit(by_kind {
                [&](const whole_key & k)  { about << ' ' << profile.*k.member; },
                [&](const number_key & k) { about << ' ' << (k.given && !(profile.*k.given) ? -1.0f : profile.*k.member); },
                [](const auto &) {},
            }, key.kind);
        }
    }
    remembered.encoder = hex_of(hash_of(about.str()));
    remembered.n_embd  = llama_model_n_embd_inp(model);
    remembered.cache.emplace(most, text_setting("HALFV_ENCODER_CACHE"), disk);
    return true;
}

// A picture may be several chunks, which share its id: they are told apart by how many of that id come before. One that
// comes again in a prompt has an id of its own (name_media).
static std::string name_of(const server_tokens & tokens, size_t at) {
    const auto id_of = [](const mtmd::input_chunk_ptr & chunk) {
        const char * id = mtmd_input_chunk_get_id(chunk.get());
        return std::string(id ? id : "");
    };
    std::string id = id_of(tokens.find_chunk(at));
    if (id.empty()) {
        return "";
    }
    size_t n_before = 0;
    const auto count = [&](size_t place, const mtmd::input_chunk_ptr & chunk) { n_before += place < at && id_of(chunk) == id; };
    if (tokens.size() > 0 && tokens[0] == LLAMA_TOKEN_NULL) {
        count(0, tokens.find_chunk(0));
    }
    for (auto [chunk, place] = tokens.find_next_media_chunk(0); chunk; std::tie(chunk, place) = tokens.find_next_media_chunk(place)) {
        count(place, *chunk);
    }
    id.erase(std::min(id.find(NAME_MARK), id.size())); // how a request names it is not the encoder's matter
    std::ostringstream places; // but what the frames before it left of it is
    if (const auto * picture = mtmd_input_chunk_get_tokens_image(tokens.find_chunk(at).get())) {
        std::vector<int32_t> entered(halfv_picture_rows(picture));
        halfv_picture_places(picture, entered.data(), (int32_t) entered.size());
        std::copy(entered.begin(), entered.end(), std::ostream_iterator<int32_t>(places, " "));
        id += "-" + hex_of(hash_of(places.str()));
    }
    return id + "-" + std::to_string(n_before) + "-" + remembered.encoder;
}

// of a picture of which only some rows go on, or null
static const mtmd_image_tokens * chosen_rows_of(const server_tokens & tokens, size_t at) {
    const auto * picture = mtmd_input_chunk_get_tokens_image(tokens.find_chunk(at).get());
    return picture && halfv_picture_rows(picture) > mtmd_image_tokens_get_n_tokens(picture) ? picture : nullptr;
}

static size_t n_tokens_of(const server_tokens & tokens, size_t at) {
    return mtmd_input_chunk_get_n_tokens(tokens.find_chunk(at).get());
}

// floats that are remembered: the embeddings, and which rows they are of
static size_t size_of(const server_tokens & tokens, size_t at) {
    return n_tokens_of(tokens, at)*(remembered.n_embd + (chosen_rows_of(tokens, at) != nullptr));
}

// Tells a chunk that was not encoded which of its rows these embeddings are. False: a file was changed.
static bool tell_rows(const mtmd_image_tokens * picture, const float * rows, size_t n) {
    std::vector<int32_t> kept;
    for (size_t i = 0; i < n; ++i) {
        kept.push_back(rows[i] >= 0.0f && rows[i] < (1 << 24) ? (int32_t) rows[i] : -1);
    }
    return halfv_picture_set_kept(picture, kept.data(), (int32_t) n) == HALFV_OK;
}

bool is_remembered(const server_tokens & tokens, size_t from, size_t at) {
    const std::string name = remembered.cache ? name_of(tokens, at) : "";
    if (name.empty() || remembered.cache->has(name, size_of(tokens, at))) {
        return !name.empty();
    }
    for (size_t place = from; place < at; place = tokens.find_next_media_chunk(place).second) {
        if (name_of(tokens, place) == name) {
            return true;
        }
    }
    return false;
}

// tokens that a picture lost when it was made smaller
static uint32_t shrunk_by(const server_tokens & tokens, size_t at) {
    const auto * picture = mtmd_input_chunk_get_tokens_image(tokens.find_chunk(at).get());
    const size_t full = picture ? halfv_picture_full_tokens(picture) : 0;
    return full ? full - mtmd_image_tokens_get_nx(picture)*mtmd_image_tokens_get_ny(picture) : 0;
}

float * embeddings(mtmd_batch * batch, const server_tokens & tokens, size_t at, figures & f) {
    static thread_local encoder_cache::entry in_use;
    const std::string name = remembered.cache ? name_of(tokens, at) : "";
    const size_t n_tokens = n_tokens_of(tokens, at), n = n_tokens*remembered.n_embd;
    const auto * picture = chosen_rows_of(tokens, at);
    if (!name.empty() && (in_use = remembered.cache->find(name, size_of(tokens, at))) &&
        (!picture || tell_rows(picture, in_use->data() + n, n_tokens))) {
        f.n_given += n_tokens;
        f.n_shrunk += shrunk_by(tokens, at);
        f.n_remembered++;
        return in_use->data();
    }
    float * made = batch ? mtmd_batch_get_output_embd(batch, tokens.find_chunk(at).get()) : nullptr;
    if (made) {
        f.n_given += n_tokens;
        f.n_shrunk += shrunk_by(tokens, at);
        f.n_encoded++;
        if (!name.empty()) {
            std::vector<float> values(made, made + n);
            if (picture) {
                std::vector<int32_t> kept(n_tokens);
                halfv_picture_kept(picture, kept.data(), (int32_t) n_tokens);
                values.insert(values.end(), kept.begin(), kept.end());
            }
            remembered.cache->add(name, values.data(), values.size());
        }
    }
    return made;
}

static constexpr float TELL_SEC = 1.0f;

static thread_local std::function<void()> watcher;

watching::watching(std::function<void()> tell) { watcher = std::move(tell); }
watching::~watching()                          { watcher = nullptr; }

int32_t encode(mtmd_batch * batch, figures & f) {
    struct progress {
        figures & f;
        int64_t   start;
    } at = { f, ggml_time_us() };
    halfv_watch_encoding([](float share, void * data) {
        auto & at = *static_cast<progress *>(data);
        at.f.encoder_share = share;
        LOG_INF("halfv: encoding a picture, %.0f%% after %.1f s\n", 100.0f*share, (ggml_time_us() - at.start)/1e6);
        if (watcher) {
            watcher();
        }
    }, &at, TELL_SEC);
    const int32_t rc = mtmd_batch_encode(batch);
    halfv_watch_encoding(nullptr, nullptr, 0.0f);
    const int64_t us = ggml_time_us() - at.start;
    f.us_encode += us;
    f.encoder_share = 1.0f;
    if (rc == 0) {
        LOG_INF("halfv: pictures encoded in %.2f s\n", us/1e6);
    }
    return rc;
}

//
// limits
//

void check_media(const std::vector<std::vector<uint8_t>> & files) {
    begin_prompt();
    const auto & most = limits();
    if ((int64_t) files.size() > most.pictures) {
        throw std::invalid_argument("the request has " + std::to_string(files.size()) + " pictures, and this server takes " +
                                    std::to_string(most.pictures) + " at most (HALFV_MAX_PICTURES)");
    }
    for (const auto & file : files) {
        int width = 0, height = 0, channels = 0;
        if (file.size() < INT32_MAX && stbi_info_from_memory(file.data(), (int) file.size(), &width, &height, &channels) &&
            (int64_t) width*height > most.megapixels*1000000) {
            throw std::invalid_argument("a picture has " + std::to_string(width) + " x " + std::to_string(height) +
                                        " pixels, and this server takes " + std::to_string(most.megapixels) + " million at most (HALFV_MAX_MEGAPIXELS)");
        }
    }
}

bool is_url(const std::string & text) {
    return url_scheme(text) != "";
}

std::vector<uint8_t> fetch(const std::string & url) {
    return fetch(url, limits().remote);
}

} // namespace halfv::server
