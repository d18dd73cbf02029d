#include "halfv-profile.h"

#include "gguf.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace halfv {

static bool in_range(float value, float low, float high) {
    return std::isfinite(value) && value >= low && value <= high;
}

template <typename T>
static std::string complaint(const char * key, const T & value, const std::string & rule) {
    std::ostringstream out;
    out << "halfv: " << key << " = " << value << " is not valid: " << rule;
    return out.str();
}

halfv_profile default_profile(uint32_t n_layer) {
    return {
        /*.size              =*/ sizeof(halfv_profile),
        /*.ivr_layer         =*/ 1,
        /*.ivr_keep          =*/ 1.0f,
        /*.ivr_anchors       =*/ 0.1f,
        /*.ssr_layer         =*/ n_layer,
        /*.ssr_update        =*/ 1.0f,
        /*.ssr_rest          =*/ HALFV_REST_DROPPED,
        /*.min_visual_tokens =*/ 64,
        /*.pixel_prune       =*/ false,
        /*.pixel_tau         =*/ 0.0f,
    };
}

std::string validate(const halfv_profile & p, uint32_t n_layer) {
    const std::string layers = std::to_string(n_layer);

    if (p.ivr_layer < 1 || p.ivr_layer >= n_layer) {
        return complaint("halfv.ivr.layer", p.ivr_layer, "it must be at least 1 and below the model's " + layers + " layers");
    }
    if (!in_range(p.ivr_keep, 0.0f, 1.0f) || p.ivr_keep == 0.0f) {
        return complaint("halfv.ivr.keep", p.ivr_keep, "it must be above 0 and at most 1");
    }
    if (!in_range(p.ivr_anchors, 0.0f, 1.0f)) {
        return complaint("halfv.ivr.anchors", p.ivr_anchors, "it must be between 0 and 1");
    }
    if (p.ssr_layer <= p.ivr_layer || p.ssr_layer > n_layer) {
        return complaint("halfv.ssr.layer", p.ssr_layer, "it must be above halfv.ivr.layer (" +
                std::to_string(p.ivr_layer) + ") and at most the model's " + layers + " layers");
    }
    if (!in_range(p.ssr_update, 0.0f, 1.0f)) {
        return complaint("halfv.ssr.update", p.ssr_update, "it must be between 0 and 1");
    }
    if (p.ssr_rest != HALFV_REST_FROZEN && p.ssr_rest != HALFV_REST_DROPPED) {
        return complaint("halfv.ssr.rest", p.ssr_rest, "it must be frozen (0) or dropped (1)");
    }
    if (p.pixel_prune && !in_range(p.pixel_tau, 0.0f, 255.0f)) {
        return complaint("halfv.pixel.tau", p.pixel_tau, "it must be between 0 and 255");
    }
    return "";
}

bool prunes(const halfv_profile & p, uint32_t n_layer) {
    return p.ivr_keep < 1.0f || (p.ssr_layer < n_layer && p.ssr_update < 1.0f);
}

// reads typed keys of the GGUF metadata, keeping the first complaint
namespace {
struct key_reader {
    const gguf_context * metadata;
    std::string error;

    int64_t find(const char * key, gguf_type type, const char * type_name, bool required) {
        const int64_t id = gguf_find_key(metadata, key);
        if (id < 0) {
            if (required && error.empty()) {
                error = std::string("halfv: ") + key + " is missing: a profile needs it";
            }
            return -1;
        }
        if (gguf_get_kv_type(metadata, id) != type) {
            if (error.empty()) {
                error = complaint(key, gguf_type_name(gguf_get_kv_type(metadata, id)), std::string("its type must be ") + type_name);
            }
            return -1;
        }
        return id;
    }

    void get(const char * key, uint32_t & out, bool required = true) {
        const int64_t id = find(key, GGUF_TYPE_UINT32, "u32", required);
        if (id >= 0) { out = gguf_get_val_u32(metadata, id); }
    }
    bool get(const char * key, float & out, bool required = true) {
        const int64_t id = find(key, GGUF_TYPE_FLOAT32, "f32", required);
        if (id >= 0) { out = gguf_get_val_f32(metadata, id); }
        return id >= 0;
    }
    void get(const char * key, std::string & out) {
        const int64_t id = find(key, GGUF_TYPE_STRING, "string", true);
        if (id >= 0) { out = gguf_get_val_str(metadata, id); }
    }
};
} // namespace

std::shared_ptr<model_profile> make_model_profile() {
    return std::make_shared<model_profile>();
}

void model_profile::read(const gguf_context * metadata) {
    value.reset();
    error.clear();
    if (gguf_find_key(metadata, "halfv.version") < 0) {
        return;
    }

    key_reader keys = { metadata, {} };
    uint32_t version = 0;
    keys.get("halfv.version", version);
    if (keys.error.empty() && version != HALFV_PROFILE_VERSION) {
        keys.error = complaint("halfv.version", version, "this build reads version 1; a newer halfv-edge may read it, or set HALFV=off to run unpruned");
    }

    halfv_profile p = default_profile(0);
    std::string rest;
    keys.get("halfv.ivr.layer",   p.ivr_layer);
    keys.get("halfv.ivr.keep",    p.ivr_keep);
    keys.get("halfv.ivr.anchors", p.ivr_anchors);
    keys.get("halfv.ssr.layer",   p.ssr_layer);
    keys.get("halfv.ssr.update",  p.ssr_update);
    keys.get("halfv.ssr.rest",    rest);
    keys.get("halfv.min_visual_tokens", p.min_visual_tokens, false);
    p.pixel_prune = keys.get("halfv.pixel.tau", p.pixel_tau, false);

    if (keys.error.empty()) {
        if (rest == "frozen") {
            p.ssr_rest = HALFV_REST_FROZEN;
        } else if (rest == "dropped") {
            p.ssr_rest = HALFV_REST_DROPPED;
        } else {
            keys.error = complaint("halfv.ssr.rest", "\"" + rest + "\"", "it must be \"frozen\" or \"dropped\"");
        }
    }
    error = keys.error;
    value = p;
}

void model_profile::set(std::optional<halfv_profile> profile) {
    error.clear();
    value = profile;
}

std::optional<halfv_profile> model_profile::get(uint32_t n_layer) const {
    const char * env = getenv("HALFV");
    if (!value || (env && strcmp(env, "off") == 0)) {
        return std::nullopt;
    }
    const std::string wrong = error.empty() ? validate(*value, n_layer) : error;
    if (!wrong.empty()) {
        throw std::runtime_error(wrong);
    }
    return value;
}

} // namespace halfv
