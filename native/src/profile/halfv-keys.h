#pragma once

#include "halfv.h"

#include <iterator>
#include <variant>

// The keys of a profile, one line each: readers, the writer and validation walk over them. halfv_edge/profile/keys.py is the
// table of Python; tests/files/test_keys.py compares the two. docs/architecture.md says how to add a key.
namespace halfv {

struct key_range {
    float low, high;
    bool  has_low; // whether the lower end is in it
    const char * rule;
};
inline constexpr key_range SHARE  = { 0.0f, 1.0f,   true,  "it must be between 0 and 1" };
inline constexpr key_range PART   = { 0.0f, 1.0f,   false, "it must be above 0 and at most 1" };
inline constexpr key_range LEVELS = { 0.0f, 255.0f, true,  "it must be between 0 and 255" };

// names of values, in the order of their enums
inline constexpr const char * RESTS[]   = { "frozen", "dropped" };
inline constexpr const char * QUERIES[] = { "last", "question" };

// What a key is, with its member. Ranges are those that a key has by itself; validate() has what depends on others.
struct whole_key   { uint32_t halfv_profile::* member; uint32_t least = 0; };
struct number_key  { float halfv_profile::* member; key_range range; bool halfv_profile::* given = nullptr; }; // given: it may be absent
struct name_key    { int32_t halfv_profile::* member; const char * const (* names)[2]; };
struct wholes_key  { uint32_t (halfv_profile::* member)[HALFV_MAX_FURTHER]; }; // n_further of them
struct numbers_key { float (halfv_profile::* member)[HALFV_MAX_FURTHER]; key_range range; };

enum class key_use {
    needed,
    optional,
    picture, // optional, and what libmtmd makes of pictures depends on it
};

struct profile_key {
    const char * name; // without "halfv."
    std::variant<whole_key, number_key, name_key, wholes_key, numbers_key> kind;
    key_use use = key_use::optional;
};

// as JSON and GGUF have it, in the order of the kinds
enum class value_type { whole, number, text, wholes, numbers };

inline value_type type_of(const profile_key & key) { return (value_type) key.kind.index(); }

// for std::visit: a lambda for each kind
template <typename... F> struct by_kind : F... { using F::operator()...; };
template <typename... F> by_kind(F...) -> by_kind<F...>;

// in the order of complaints
inline constexpr profile_key PROFILE_KEYS[] = {
    { "ivr.layer",         whole_key{ &halfv_profile::ivr_layer },               key_use::needed },
    { "ivr.keep",          number_key{ &halfv_profile::ivr_keep, PART },         key_use::needed },
    { "ivr.anchors",       number_key{ &halfv_profile::ivr_anchors, SHARE },     key_use::needed },
    { "ivr.query",         name_key{ &halfv_profile::ivr_query, &QUERIES } },
    { "ivr.bias",          number_key{ &halfv_profile::ivr_bias, SHARE } },
    { "ssr.layer",         whole_key{ &halfv_profile::ssr_layer },               key_use::needed },
    { "ssr.update",        number_key{ &halfv_profile::ssr_update, SHARE },      key_use::needed },
    { "ssr.rest",          name_key{ &halfv_profile::ssr_rest, &RESTS },         key_use::needed },
    { "min_visual_tokens", whole_key{ &halfv_profile::min_visual_tokens },       key_use::picture },
    { "pixel.tau",         number_key{ &halfv_profile::pixel_tau, LEVELS, &halfv_profile::pixel_prune },   key_use::picture },
    { "frames.tau",        number_key{ &halfv_profile::frames_tau, LEVELS, &halfv_profile::frames_prune }, key_use::picture },
    { "input.keep",        number_key{ &halfv_profile::input_keep, PART },       key_use::picture },
    { "input.merge",       number_key{ &halfv_profile::input_merge, PART },      key_use::picture },
    { "encoder.layer",     whole_key{ &halfv_profile::encoder_layer, 1 },        key_use::picture },
    { "encoder.keep",      number_key{ &halfv_profile::encoder_keep, PART },     key_use::picture },
    { "ffn.layer",         whole_key{ &halfv_profile::ffn_layer } },
    { "ffn.keep",          number_key{ &halfv_profile::ffn_keep, PART } },
    { "heads.layer",       whole_key{ &halfv_profile::heads_layer } },
    { "heads.keep",        number_key{ &halfv_profile::heads_keep, PART } },
    { "neighbours.layer",  whole_key{ &halfv_profile::neighbours_layer } },
    { "neighbours.width",  whole_key{ &halfv_profile::neighbours_width } },
    { "further.layers",    wholes_key{ &halfv_profile::further_layers } },
    { "further.keep",      numbers_key{ &halfv_profile::further_keep, SHARE } },
    { "image.loss",        number_key{ &halfv_profile::image_loss, SHARE },      key_use::picture },
    { "visual_share",      number_key{ &halfv_profile::visual_share, SHARE } },
};
constexpr size_t N_PROFILE_KEYS = std::size(PROFILE_KEYS);

} // namespace halfv
