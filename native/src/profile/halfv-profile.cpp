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
#include <tuple>

namespace halfv {

static std::string too_many_further(size_t n) {
    return complaint("halfv.further.layers", std::to_string(n) + " values", "there can be at most " + std::to_string(HALFV_MAX_FURTHER));
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

// "", or what is wrong with a key whatever the others are
static std::string wrong_alone(const profile_key & key, const halfv_profile & p) {
    const std::string name = std::string("halfv.") + key.name;
    const auto check = [&](float value, const key_range & range) -> std::string {
        const bool fits = std::isfinite(value) && (value > range.low || (range.has_low && value == range.low)) && value <= range.high;
        return fits ? "" : complaint(name, value, range.rule);
    };
    return std::visit(by_kind {
        [&](const whole_key & k) -> std::string {
            return p.*k.member >= k.least ? "" : complaint(name, p.*k.member, "it must be at least " + std::to_string(k.least));
        },
        [&](const number_key & k) -> std::string { return k.given && !(p.*k.given) ? "" : check(p.*k.member, k.range); },
        [&](const name_key & k) -> std::string {
            const auto & names = *k.names;
            return p.*k.member == 0 || p.*k.member == 1 ? "" :
                    complaint(name, p.*k.member, std::string("it must be ") + names[0] + " (0) or " + names[1] + " (1)");
        },
        [&](const wholes_key &) -> std::string { return ""; },
        [&](const numbers_key & k) -> std::string {
            for (uint32_t i = 0; i < p.n_further; ++i) {
                if (std::string wrong = check((p.*k.member)[i], k.range); !wrong.empty()) { return wrong; }
            }
            return "";
        },
    }, key.kind);
}

// the same of what depends on others and on the model
static std::string wrong_beside_others(const profile_key & key, const halfv_profile & p, uint32_t n_layer) {
    const std::string name = std::string("halfv.") + key.name, layers = std::to_string(n_layer);
    const auto is = [&](const char * other) { return strcmp(key.name, other) == 0; };
    const std::string below = "below the model's " + layers + " layers", ivr_layer = "halfv.ivr.layer (" + std::to_string(p.ivr_layer) + ")";
    if (is("ivr.layer") && (p.ivr_layer < 1 || p.ivr_layer >= n_layer)) {
        return complaint(name, p.ivr_layer, "it must be at least 1 and " + below);
    }
    if (is("ivr.bias") && p.ivr_bias > 0.0f && p.neighbours_width > 0) {
        return complaint(name, p.ivr_bias, "with halfv.neighbours.width it must be 0");
    }
    if (is("ssr.layer") && (p.ssr_layer <= p.ivr_layer || p.ssr_layer > n_layer)) {
        return complaint(name, p.ssr_layer, "it must be above " + ivr_layer + " and at most the model's " + layers + " layers");
    }
    if (is("neighbours.width") && p.neighbours_width > 0 && (p.neighbours_width % 2 == 0 || p.neighbours_width > HALFV_MAX_WIDTH)) {
        return complaint(name, p.neighbours_width, "it must be 0, or odd and at most " + std::to_string(HALFV_MAX_WIDTH));
    }
    for (const auto & [much, layer_name, layer, is_used] : {
            std::tuple("ffn.keep",         "halfv.ffn.layer",        p.ffn_layer,        p.ffn_keep < 1.0f),
            std::tuple("heads.keep",       "halfv.heads.layer",      p.heads_layer,      p.heads_keep < 1.0f),
            std::tuple("neighbours.width", "halfv.neighbours.layer", p.neighbours_layer, p.neighbours_width > 0) }) {
        if (is(much) && is_used && (layer < p.ivr_layer || layer >= n_layer)) {
            return complaint(layer_name, layer, "it must be at least " + ivr_layer + " and " + below);
        }
    }
    for (uint32_t i = 0; i < p.n_further; ++i) {
        const uint32_t layer = p.further_layers[i], before = i == 0 ? p.ssr_layer : p.further_layers[i - 1];
        if (is("further.layers") && (layer <= before || layer >= n_layer)) {
            return complaint(name, layer, "it must be above the " + std::string(i == 0 ? "halfv.ssr.layer" : "one") + " before it (" +
                    std::to_string(before) + ") and " + below);
        }
        if (is("further.keep") && p.ssr_rest == HALFV_REST_FROZEN && p.further_keep[i] != 0.0f) {
            return complaint(name, p.further_keep[i], "behind tokens that are frozen it must be 0");
        }
    }
    return "";
}

std::string validate(const halfv_profile & p, uint32_t n_layer) {
    if (p.n_further > HALFV_MAX_FURTHER) {
        return too_many_further(p.n_further);
    }
    for (const profile_key & key : PROFILE_KEYS) {
        if (std::string wrong = wrong_alone(key, p); !wrong.empty()) { return wrong; }
        if (std::string wrong = wrong_beside_others(key, p, n_layer); !wrong.empty()) { return wrong; }
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
        for (const profile_key & key : PROFILE_KEYS) {
            if (key.use == key_use::picture) {
                std::visit(by_kind {
                    [&](const number_key & k) {
                        part.*k.member = p.*k.member;
                        if (k.given) { part.*k.given = p.*k.given; }
                    },
                    [&](const auto & k) { memcpy(&(part.*k.member), &(p.*k.member), sizeof(part.*k.member)); },
                }, key.kind);
            }
        }
        p = part;
    }
    return validate(p, n_layer);
}

[[noreturn]] static void refuse(const std::string & sentence) {
    throw std::runtime_error(sentence);
}

static void set_further(halfv_profile & p, const std::vector<uint32_t> & layers, const std::vector<float> & keep) {
    if (layers.size() > HALFV_MAX_FURTHER) {
        refuse(too_many_further(layers.size()));
    }
    if (keep.size() != layers.size()) {
        refuse(complaint("halfv.further.keep", std::to_string(keep.size()) + " values", "halfv.further.layers has " + std::to_string(layers.size())));
    }
    p.n_further = layers.size();
    std::copy(layers.begin(), layers.end(), p.further_layers);
    std::copy(keep.begin(), keep.end(), p.further_keep);
}

static int32_t number_of(const profile_key & key, const std::string & name, const char * const (& names)[2]) {
    for (int32_t i = 0; i < 2; ++i) {
        if (name == names[i]) { return i; }
    }
    refuse(complaint(std::string("halfv.") + key.name, quoted(name), std::string("it must be \"") + names[0] + "\" or \"" + names[1] + "\""));
}

halfv_profile make_profile(const key_values & values) {
    halfv_profile p = default_profile(0);
    std::vector<uint32_t> layers;
    std::vector<float> keep;
    for (const auto & value : values) {
        if (value && std::holds_alternative<std::vector<uint32_t>>(*value)) { layers = std::get<std::vector<uint32_t>>(*value); }
        if (value && std::holds_alternative<std::vector<float>>(*value))    { keep   = std::get<std::vector<float>>(*value); }
    }
    set_further(p, layers, keep);
    for (size_t i = 0; i < values.size(); ++i) {
        if (const auto & value = values[i]) {
            std::visit(by_kind {
                [&](const whole_key & k)  { p.*k.member = std::get<uint32_t>(*value); },
                [&](const number_key & k) {
                    p.*k.member = std::get<float>(*value);
                    if (k.given) { p.*k.given = true; }
                },
                [&](const name_key & k) { p.*k.member = number_of(PROFILE_KEYS[i], std::get<std::string>(*value), *k.names); },
                [](const auto &) {}, // lists
            }, PROFILE_KEYS[i].kind);
        }
    }
    return p;
}

template <typename T>
static std::vector<T> list_at(const gguf_context * metadata, int64_t id) {
    const auto * values = static_cast<const T *>(gguf_get_arr_data(metadata, id));
    return { values, values + gguf_get_arr_n(metadata, id) };
}

static std::optional<key_value> read_value(const gguf_context * metadata, const std::string & key, value_type type, bool needed) {
    static const struct { gguf_type type, item; const char * name; } KNOWN[] = { // in the order of value_type
        { GGUF_TYPE_UINT32,  GGUF_TYPE_COUNT,   "u32" },
        { GGUF_TYPE_FLOAT32, GGUF_TYPE_COUNT,   "f32" },
        { GGUF_TYPE_STRING,  GGUF_TYPE_COUNT,   "string" },
        { GGUF_TYPE_ARRAY,   GGUF_TYPE_UINT32,  "array of u32" },
        { GGUF_TYPE_ARRAY,   GGUF_TYPE_FLOAT32, "array of f32" },
    };
    const int64_t id = gguf_find_key(metadata, key.c_str());
    if (id < 0) {
        if (needed) { refuse(missing(key)); }
        return std::nullopt;
    }
    const auto & wanted = KNOWN[(int) type];
    const gguf_type found = gguf_get_kv_type(metadata, id);
    if (found != wanted.type || (found == GGUF_TYPE_ARRAY && gguf_get_arr_type(metadata, id) != wanted.item)) {
        refuse(complaint(key, gguf_type_name(found), std::string("its type must be ") + wanted.name));
    }
    switch (type) {
        case value_type::whole:   return gguf_get_val_u32(metadata, id);
        case value_type::number:  return gguf_get_val_f32(metadata, id);
        case value_type::text:    return gguf_get_val_str(metadata, id);
        case value_type::wholes:  return list_at<uint32_t>(metadata, id);
        case value_type::numbers: return list_at<float>(metadata, id);
    }
    return std::nullopt;
}

static void read_gguf(found_profile & found, const gguf_context * metadata) {
    if (gguf_find_key(metadata, "halfv.version") < 0) {
        return;
    }
    const auto version = std::get<uint32_t>(*read_value(metadata, "halfv.version", value_type::whole, true));
    if (version != HALFV_PROFILE_VERSION) { refuse(wrong_version(version)); }
    key_values values;
    for (size_t i = 0; i < values.size(); ++i) {
        const profile_key & key = PROFILE_KEYS[i];
        values[i] = read_value(metadata, std::string("halfv.") + key.name, type_of(key), key.use == key_use::needed);
    }
    found.value = make_profile(values);
}

// what a person may know a model by
static std::string name_of(const gguf_context * metadata) {
    for (const char * key : { "general.name", "general.architecture" }) {
        const int64_t id = gguf_find_key(metadata, key);
        if (id >= 0 && gguf_get_kv_type(metadata, id) == GGUF_TYPE_STRING && *gguf_get_val_str(metadata, id)) {
            return quoted(gguf_get_val_str(metadata, id));
        }
    }
    return "without a name";
}

// HALFV_PROFILE is the JSON itself or the name of a file; it is for every model of a process, also where it fits but one
static void read_environment(found_profile & found, const std::string & given, const gguf_context * metadata) {
    found.from_environment = true;
    std::string where = "HALFV_PROFILE", text = given;
    found.origin = where + ": ";
    if (given[given.find_first_not_of(" \t\r\n")] != '{') {
        text = read_profile_file(given);
        where += " (" + quoted(given, 1024) + ")";
        found.origin = where + ": ";
    }
    const json_profile parsed = parse_profile(text);
    found.value       = parsed.profile;
    found.calibration = parsed.calibration;
    found.origin      = where + ", for the model " + name_of(metadata) + ": ";
}

void model_profile::read(const gguf_context * metadata) {
    const char * given = getenv("HALFV_PROFILE");
    found_profile read;
    try {
        if (given && given[strspn(given, " \t\r\n")]) {
            read_environment(read, given, metadata);
        } else {
            read_gguf(read, metadata);
        }
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & err) {
        read.error = err.what();
    }
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
    const halfv_profile usual = default_profile(0);
    gguf_set_val_u32(metadata, "halfv.version", HALFV_PROFILE_VERSION);
    for (const profile_key & key : PROFILE_KEYS) {
        const std::string name = std::string("halfv.") + key.name;
        const auto says = [&](auto member) { return key.use == key_use::needed || p.*member != usual.*member; };
        std::visit(by_kind {
            [&](const whole_key & k)  { if (says(k.member)) { gguf_set_val_u32(metadata, name.c_str(), p.*k.member); } },
            [&](const number_key & k) { if (k.given ? p.*k.given : says(k.member)) { gguf_set_val_f32(metadata, name.c_str(), p.*k.member); } },
            [&](const name_key & k)   { if (says(k.member)) { gguf_set_val_str(metadata, name.c_str(), (*k.names)[p.*k.member]); } },
            [&](const wholes_key & k) {
                if (p.n_further > 0) { gguf_set_arr_data(metadata, name.c_str(), GGUF_TYPE_UINT32, p.*k.member, p.n_further); }
            },
            [&](const numbers_key & k) {
                if (p.n_further > 0) { gguf_set_arr_data(metadata, name.c_str(), GGUF_TYPE_FLOAT32, p.*k.member, p.n_further); }
            },
        }, key.kind);
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
