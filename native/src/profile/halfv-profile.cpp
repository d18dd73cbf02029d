#include "halfv-profile.h"

#include "halfv-complaint.h"
#include "halfv-switch.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace halfv {

static std::string too_many_further(size_t n) {
    return complaint("halfv.further.layers", std::to_string(n) + " values", "there can be at most " + std::to_string(HALFV_MAX_FURTHER));
}

static bool in_range(float value, float low, float high) {
    return std::isfinite(value) && value >= low && value <= high;
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
        /*.visual_share      =*/ 0.0f,
        /*.input_keep        =*/ 1.0f,
        /*.encoder_layer     =*/ 1,
        /*.encoder_keep      =*/ 1.0f,
        /*.input_merge       =*/ 1.0f,
        /*.n_further         =*/ 0,
        /*.further_layers    =*/ {},
        /*.further_keep      =*/ {},
        /*.ffn_layer         =*/ 1,
        /*.ffn_keep          =*/ 1.0f,
        /*.heads_layer       =*/ 1,
        /*.heads_keep        =*/ 1.0f,
        /*.neighbours_layer  =*/ 1,
        /*.neighbours_width  =*/ 0,
        /*.image_loss        =*/ 0.0f,
        /*.ivr_query         =*/ HALFV_QUERY_LAST,
        /*.ivr_bias          =*/ 0.0f,
        /*.frames_prune      =*/ false,
        /*.frames_tau        =*/ 0.0f,
    };
}

stage_bounds bounds_of(const halfv_profile & p, uint32_t n_layer) {
    stage_bounds res;
    res.fill(n_layer);
    res[0] = 0;
    res[1] = p.ivr_layer;
    res[2] = p.ssr_layer;
    std::copy_n(p.further_layers, p.n_further, res.begin() + 3);
    return res;
}

float share_of_stage(const halfv_profile & p, int s) {
    return s == 2 ? p.ssr_update : s - 3 < (int) p.n_further ? p.further_keep[s - 3] : 1.0f;
}

double share_updated(const halfv_profile & p, int s) {
    double share = s == 0 ? 1.0f : p.ivr_keep;
    for (int i = 2; i <= s; ++i) { share = std::min<double>(share, share_of_stage(p, i)); }
    return share;
}

double share_held(const halfv_profile & p, int s) {
    return s == 2 && p.ssr_rest == HALFV_REST_FROZEN ? p.ivr_keep : share_updated(p, s);
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
    if (p.ivr_query != HALFV_QUERY_LAST && p.ivr_query != HALFV_QUERY_QUESTION) {
        return complaint("halfv.ivr.query", p.ivr_query, "it must be last (0) or question (1)");
    }
    if (!in_range(p.ivr_bias, 0.0f, 1.0f)) {
        return complaint("halfv.ivr.bias", p.ivr_bias, "it must be between 0 and 1");
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
    if (!in_range(p.visual_share, 0.0f, 1.0f)) {
        return complaint("halfv.visual_share", p.visual_share, "it must be between 0 and 1");
    }
    if (!in_range(p.input_keep, 0.0f, 1.0f) || p.input_keep == 0.0f) {
        return complaint("halfv.input.keep", p.input_keep, "it must be above 0 and at most 1");
    }
    if (p.encoder_layer < 1) {
        return complaint("halfv.encoder.layer", p.encoder_layer, "it must be at least 1");
    }
    if (!in_range(p.encoder_keep, 0.0f, 1.0f) || p.encoder_keep == 0.0f) {
        return complaint("halfv.encoder.keep", p.encoder_keep, "it must be above 0 and at most 1");
    }
    if (!in_range(p.input_merge, 0.0f, 1.0f) || p.input_merge == 0.0f) {
        return complaint("halfv.input.merge", p.input_merge, "it must be above 0 and at most 1");
    }
    if (p.n_further > HALFV_MAX_FURTHER) {
        return too_many_further(p.n_further);
    }
    for (uint32_t i = 0; i < p.n_further; ++i) {
        const uint32_t layer = p.further_layers[i], before = i == 0 ? p.ssr_layer : p.further_layers[i - 1];
        if (layer <= before || layer >= n_layer) {
            return complaint("halfv.further.layers", layer, "it must be above the " + std::string(i == 0 ? "halfv.ssr.layer" : "one") + " before it (" +
                    std::to_string(before) + ") and below the model's " + layers + " layers");
        }
    }
    for (uint32_t i = 0; i < p.n_further; ++i) {
        if (!in_range(p.further_keep[i], 0.0f, 1.0f)) {
            return complaint("halfv.further.keep", p.further_keep[i], "it must be between 0 and 1");
        }
        if (p.ssr_rest == HALFV_REST_FROZEN && p.further_keep[i] != 0.0f) {
            return complaint("halfv.further.keep", p.further_keep[i], "behind tokens that are frozen it must be 0");
        }
    }
    if (!in_range(p.ffn_keep, 0.0f, 1.0f) || p.ffn_keep == 0.0f) {
        return complaint("halfv.ffn.keep", p.ffn_keep, "it must be above 0 and at most 1");
    }
    const auto in_later_stages = [&](uint32_t layer) { return layer >= p.ivr_layer && layer < n_layer; };
    const std::string later_stages = "it must be at least halfv.ivr.layer (" + std::to_string(p.ivr_layer) + ") and below the model's " + layers + " layers";
    if (p.ffn_keep < 1.0f && !in_later_stages(p.ffn_layer)) {
        return complaint("halfv.ffn.layer", p.ffn_layer, later_stages);
    }
    if (!in_range(p.heads_keep, 0.0f, 1.0f) || p.heads_keep == 0.0f) {
        return complaint("halfv.heads.keep", p.heads_keep, "it must be above 0 and at most 1");
    }
    if (p.heads_keep < 1.0f && !in_later_stages(p.heads_layer)) {
        return complaint("halfv.heads.layer", p.heads_layer, later_stages);
    }
    if (p.neighbours_width > 0 && (p.neighbours_width % 2 == 0 || p.neighbours_width > HALFV_MAX_WIDTH)) {
        return complaint("halfv.neighbours.width", p.neighbours_width, "it must be 0, or odd and at most " + std::to_string(HALFV_MAX_WIDTH));
    }
    if (p.neighbours_width > 0 && !in_later_stages(p.neighbours_layer)) {
        return complaint("halfv.neighbours.layer", p.neighbours_layer, later_stages);
    }
    if (p.neighbours_width > 0 && p.ivr_bias > 0.0f) {
        return complaint("halfv.ivr.bias", p.ivr_bias, "with halfv.neighbours.width it must be 0");
    }
    if (!in_range(p.image_loss, 0.0f, 1.0f)) {
        return complaint("halfv.image.loss", p.image_loss, "it must be between 0 and 1");
    }
    if (p.frames_prune && !in_range(p.frames_tau, 0.0f, 255.0f)) {
        return complaint("halfv.frames.tau", p.frames_tau, "it must be between 0 and 255");
    }
    return "";
}

bool narrows(const halfv_profile & p) {
    return p.ffn_keep < 1.0f || p.heads_keep < 1.0f || p.neighbours_width > 0;
}

bool prunes(const halfv_profile & p, uint32_t n_layer) {
    return p.ivr_keep < 1.0f || narrows(p) || (p.ssr_layer < n_layer && p.ssr_update < 1.0f) ||
           std::any_of(p.further_keep, p.further_keep + p.n_further, [](float keep) { return keep < 1.0f; });
}

std::string make_usable(halfv_profile & p, uint32_t n_layer, bool can_be_cut) {
    if (!can_be_cut) {
        n_layer = std::max(n_layer, 2u); // or no stages would be valid
        halfv_profile part = default_profile(n_layer);
        part.min_visual_tokens = p.min_visual_tokens;
        part.pixel_prune       = p.pixel_prune;
        part.pixel_tau         = p.pixel_tau;
        part.input_keep        = p.input_keep;
        part.encoder_layer     = p.encoder_layer;
        part.encoder_keep      = p.encoder_keep;
        part.input_merge       = p.input_merge;
        part.image_loss        = p.image_loss;
        part.frames_prune      = p.frames_prune;
        part.frames_tau        = p.frames_tau;
        p = part;
    }
    return validate(p, n_layer);
}

std::string set_further(halfv_profile & p, const std::vector<uint32_t> & layers, const std::vector<float> & keep) {
    if (layers.size() > HALFV_MAX_FURTHER) {
        return too_many_further(layers.size());
    }
    if (keep.size() != layers.size()) {
        return complaint("halfv.further.keep", std::to_string(keep.size()) + " values", "halfv.further.layers has " + std::to_string(layers.size()));
    }
    p.n_further = layers.size();
    std::copy(layers.begin(), layers.end(), p.further_layers);
    std::copy(keep.begin(), keep.end(), p.further_keep);
    return "";
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
                error = missing(key);
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
    void get(const char * key, std::string & out, bool required = true) {
        const int64_t id = find(key, GGUF_TYPE_STRING, "string", required);
        if (id >= 0) { out = gguf_get_val_str(metadata, id); }
    }
    template <typename T>
    std::vector<T> get_list(const char * key, gguf_type type, const char * type_name) {
        const int64_t id = find(key, GGUF_TYPE_ARRAY, type_name, false);
        if (id < 0) {
            return {};
        }
        if (gguf_get_arr_type(metadata, id) != type) {
            if (error.empty()) { error = complaint(key, "arr", std::string("its type must be ") + type_name); }
            return {};
        }
        const auto * values = static_cast<const T *>(gguf_get_arr_data(metadata, id));
        return { values, values + gguf_get_arr_n(metadata, id) };
    }
};
} // namespace

static found_profile read_gguf(const gguf_context * metadata) {
    if (gguf_find_key(metadata, "halfv.version") < 0) {
        return {};
    }
    key_reader keys = { metadata, {} };
    uint32_t version = 0;
    keys.get("halfv.version", version);
    if (keys.error.empty() && version != HALFV_PROFILE_VERSION) {
        keys.error = wrong_version(version);
    }

    halfv_profile p = default_profile(0);
    std::string rest, query = QUERIES[0];
    keys.get("halfv.ivr.layer",   p.ivr_layer);
    keys.get("halfv.ivr.keep",    p.ivr_keep);
    keys.get("halfv.ivr.anchors", p.ivr_anchors);
    keys.get("halfv.ssr.layer",   p.ssr_layer);
    keys.get("halfv.ssr.update",  p.ssr_update);
    keys.get("halfv.ssr.rest",    rest);
    keys.get("halfv.min_visual_tokens", p.min_visual_tokens, false);
    p.pixel_prune = keys.get("halfv.pixel.tau", p.pixel_tau, false);
    keys.get("halfv.visual_share", p.visual_share, false);
    keys.get("halfv.input.keep", p.input_keep, false);
    keys.get("halfv.encoder.layer", p.encoder_layer, false);
    keys.get("halfv.encoder.keep", p.encoder_keep, false);
    keys.get("halfv.input.merge", p.input_merge, false);
    const auto further_layers = keys.get_list<uint32_t>("halfv.further.layers", GGUF_TYPE_UINT32, "array of u32");
    const auto further_keep   = keys.get_list<float>("halfv.further.keep", GGUF_TYPE_FLOAT32, "array of f32");
    keys.get("halfv.ffn.layer", p.ffn_layer, false);
    keys.get("halfv.ffn.keep", p.ffn_keep, false);
    keys.get("halfv.heads.layer", p.heads_layer, false);
    keys.get("halfv.heads.keep", p.heads_keep, false);
    keys.get("halfv.neighbours.layer", p.neighbours_layer, false);
    keys.get("halfv.neighbours.width", p.neighbours_width, false);
    keys.get("halfv.image.loss", p.image_loss, false);
    keys.get("halfv.ivr.query", query, false);
    keys.get("halfv.ivr.bias", p.ivr_bias, false);
    p.frames_prune = keys.get("halfv.frames.tau", p.frames_tau, false);
    if (keys.error.empty()) { keys.error = set_further(p, further_layers, further_keep); }

    if (keys.error.empty()) { keys.error = set_named(p.ssr_rest, "halfv.ssr.rest", rest, quoted(rest), RESTS); }
    if (keys.error.empty()) { keys.error = set_named(p.ivr_query, "halfv.ivr.query", query, quoted(query), QUERIES); }

    found_profile found;
    found.value = p;
    found.error = keys.error;
    return found;
}

// HALFV_PROFILE is the JSON itself or the name of a file
static found_profile read_environment(const std::string & given) {
    found_profile found;
    found.from_environment = true;
    found.origin = "HALFV_PROFILE: ";
    try {
        std::string text = given;
        if (given[given.find_first_not_of(" \t\r\n")] != '{') {
            text = read_profile_file(given);
            found.origin = "HALFV_PROFILE (" + quoted(given, 1024) + "): ";
        }
        const json_profile parsed = parse_profile(text);
        found.value       = parsed.profile;
        found.calibration = parsed.calibration;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & err) {
        found.error = err.what();
    }
    return found;
}

void model_profile::read(const gguf_context * metadata) {
    const char * given = getenv("HALFV_PROFILE");
    const bool is_given = given && given[strspn(given, " \t\r\n")];
    found_profile read = is_given ? read_environment(given) : read_gguf(metadata);
    const std::lock_guard<std::mutex> lock(mutex);
    found = std::move(read);
}

// what contexts would use, without how it was found
void model_profile::write(gguf_context * metadata) const {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!found.value || !found.error.empty()) {
        return;
    }
    const auto & p = *found.value;
    gguf_set_val_u32(metadata, "halfv.version",           HALFV_PROFILE_VERSION);
    gguf_set_val_u32(metadata, "halfv.ivr.layer",         p.ivr_layer);
    gguf_set_val_f32(metadata, "halfv.ivr.keep",          p.ivr_keep);
    gguf_set_val_f32(metadata, "halfv.ivr.anchors",       p.ivr_anchors);
    gguf_set_val_u32(metadata, "halfv.ssr.layer",         p.ssr_layer);
    gguf_set_val_f32(metadata, "halfv.ssr.update",        p.ssr_update);
    gguf_set_val_str(metadata, "halfv.ssr.rest",          RESTS[p.ssr_rest]);
    gguf_set_val_u32(metadata, "halfv.min_visual_tokens", p.min_visual_tokens);
    if (p.pixel_prune)         { gguf_set_val_f32(metadata, "halfv.pixel.tau",    p.pixel_tau); }
    if (p.frames_prune)        { gguf_set_val_f32(metadata, "halfv.frames.tau",   p.frames_tau); }
    if (p.visual_share > 0.0f) { gguf_set_val_f32(metadata, "halfv.visual_share", p.visual_share); }
    if (p.input_keep < 1.0f)   { gguf_set_val_f32(metadata, "halfv.input.keep",   p.input_keep); }
    if (p.ivr_query != HALFV_QUERY_LAST) { gguf_set_val_str(metadata, "halfv.ivr.query", QUERIES[p.ivr_query]); }
    if (p.ivr_bias > 0.0f)     { gguf_set_val_f32(metadata, "halfv.ivr.bias",     p.ivr_bias); }
    if (p.input_merge < 1.0f)  { gguf_set_val_f32(metadata, "halfv.input.merge",  p.input_merge); }
    if (p.n_further > 0) {
        gguf_set_arr_data(metadata, "halfv.further.layers", GGUF_TYPE_UINT32,  p.further_layers, p.n_further);
        gguf_set_arr_data(metadata, "halfv.further.keep",   GGUF_TYPE_FLOAT32, p.further_keep,   p.n_further);
    }
    if (p.ffn_keep < 1.0f) {
        gguf_set_val_u32(metadata, "halfv.ffn.layer", p.ffn_layer);
        gguf_set_val_f32(metadata, "halfv.ffn.keep",  p.ffn_keep);
    }
    if (p.heads_keep < 1.0f) {
        gguf_set_val_u32(metadata, "halfv.heads.layer", p.heads_layer);
        gguf_set_val_f32(metadata, "halfv.heads.keep",  p.heads_keep);
    }
    if (p.neighbours_width > 0) {
        gguf_set_val_u32(metadata, "halfv.neighbours.layer", p.neighbours_layer);
        gguf_set_val_u32(metadata, "halfv.neighbours.width", p.neighbours_width);
    }
    if (p.image_loss > 0.0f) { gguf_set_val_f32(metadata, "halfv.image.loss", p.image_loss); }
    if (p.encoder_keep < 1.0f) {
        gguf_set_val_u32(metadata, "halfv.encoder.layer", p.encoder_layer);
        gguf_set_val_f32(metadata, "halfv.encoder.keep",  p.encoder_keep);
    }
}

void model_profile::set(std::optional<halfv_profile> profile) {
    const std::lock_guard<std::mutex> lock(mutex);
    found = {};
    found.value = profile;
}

std::optional<halfv_profile> model_profile::get(uint32_t n_layer, bool supported) const {
    const std::lock_guard<std::mutex> lock(mutex);
    if (switched_off() || (found.from_environment && !supported && !found.error.empty())) {
        return std::nullopt;
    }
    std::optional<halfv_profile> value = found.value;
    std::string wrong = found.error;
    if (wrong.empty() && value) {
        wrong = make_usable(*value, n_layer, supported);
    }
    if (wrong.empty() && supported) {
        wrong = validate(found.calibration, n_layer);
    }
    if (!wrong.empty()) {
        throw std::runtime_error("halfv: " + found.origin + wrong);
    }
    return value;
}

bool model_profile::exists() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return !switched_off() && (found.value || !found.error.empty());
}

void model_profile::set_stage_cells(const std::array<uint32_t, 3> & cells) {
    const std::lock_guard<std::mutex> lock(mutex);
    n_cells = cells;
}

std::array<uint32_t, 3> model_profile::stage_cells() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return n_cells;
}

std::shared_ptr<model_profile> make_model_profile() {
    return std::make_shared<model_profile>();
}

} // namespace halfv
