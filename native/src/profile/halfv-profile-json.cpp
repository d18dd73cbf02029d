#include "halfv-profile-json.h"

#include "halfv-complaint.h"
#include "halfv-profile.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <type_traits>

namespace halfv {

using json = nlohmann::ordered_json; // mistakes are reported in the order in which they are written

constexpr size_t MAX_FILE_BYTES = 1 << 20;
constexpr size_t MAX_KEYS       = 1000;
constexpr int    MAX_DEPTH      = 64;

static std::string shown(const json & value, size_t n_max = 80) {
    const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    return text.size() <= n_max ? text : text.substr(0, n_max - 3) + "...";
}

std::string quoted(const std::string & text, size_t n_max) {
    return shown(text, n_max);
}

[[noreturn]] static void refuse(const std::string & sentence) {
    throw std::runtime_error(sentence);
}

std::string read_profile_file(const std::string & path) {
    namespace fs = std::filesystem;
    const std::string name = quoted(path, 1024);
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (!fs::exists(status)) {
        refuse(name + " cannot be read: " + error.message());
    }
    if (fs::is_directory(status)) {
        refuse(name + " is a folder: name the file in it");
    }
    if (!fs::is_regular_file(status)) { // opening a pipe would wait for ever
        refuse(name + " is not a regular file");
    }
    std::ifstream file(path, std::ios::binary);
    std::string text(MAX_FILE_BYTES + 1, '\0');
    if (!file || (!file.read(&text[0], text.size()) && !file.eof())) {
        refuse(name + " cannot be read");
    }
    text.resize(file.gcount());
    if (text.size() > MAX_FILE_BYTES) {
        refuse(name + " is too long for a profile");
    }
    return text;
}

// the tree, when it is no larger than a profile can be and no object has a key twice
static json parse(const std::string & text) {
    size_t n_keys = 0;
    std::vector<std::set<std::string>> open; // keys of the objects that have not ended
    const auto check = [&](int depth, json::parse_event_t event, const json & key) {
        if (depth > MAX_DEPTH) {
            refuse("it is not a profile: it is nested too deep");
        }
        if (event == json::parse_event_t::object_start) {
            open.emplace_back();
        } else if (event == json::parse_event_t::object_end) {
            open.pop_back();
        } else if (event == json::parse_event_t::key) {
            if (++n_keys > MAX_KEYS) { // ordered_json looks keys up one by one
                refuse("it is not a profile: it has too many keys");
            }
            if (!open.back().insert(key).second) {
                refuse("the key " + shown(key) + " is there twice");
            }
        }
        return true;
    };
    try {
        return json::parse(text, check);
    } catch (const json::parse_error & error) {
        refuse("it is not valid JSON at byte " + std::to_string(error.byte));
    } catch (const json::out_of_range &) {
        refuse("it is not valid JSON: a number in it is too large");
    }
}

namespace {

const char * rule_of(value_type type) {
    switch (type) {
        case value_type::whole:   return "it must be a whole number from 0 to 4294967295";
        case value_type::number:  return "it must be a number";
        case value_type::text:    return "it must be text";
        case value_type::numbers: return "it must be a list of numbers";
        case value_type::wholes:  return "it must be a list of whole numbers from 0 to 4294967295";
    }
    return "";
}

bool is_whole(const json & value) {
    return value.is_number_unsigned() && value.get<uint64_t>() <= UINT32_MAX;
}

bool fits(const json & value, value_type type) {
    switch (type) {
        case value_type::whole:  return is_whole(value);
        case value_type::number: return value.is_number();
        case value_type::text:   return value.is_string();
        case value_type::numbers:
            return value.is_array() && std::all_of(value.begin(), value.end(), [](const json & item) { return item.is_number(); });
        case value_type::wholes:
            return value.is_array() && std::all_of(value.begin(), value.end(), is_whole);
    }
    return false;
}

struct evidence_key {
    const char * name;
    value_type   type;
};

// what a profile was found with, which changes nothing
const evidence_key EVIDENCE_KEYS[] = {
    { "calibration.samples",        value_type::whole },
    { "calibration.source",         value_type::text },
    { "calibration.visual_entropy", value_type::numbers },
    { "calibration.text_entropy",   value_type::numbers },
    { "calibration.layer_kl",       value_type::numbers },
    { "calibration.divergence",     value_type::number },
};

bool is_group(const std::string & key) {
    return key == "calibration" || std::any_of(std::begin(PROFILE_KEYS), std::end(PROFILE_KEYS), [&](const profile_key & k) {
        return std::string(k.name).rfind(key + ".", 0) == 0;
    });
}

struct entry {
    std::string key;
    json        value;

    bool is_evidence() const { return key.rfind("calibration.", 0) == 0; }
};

const entry * find(const std::vector<entry> & entries, const char * key) {
    const auto found = std::find_if(entries.begin(), entries.end(), [&](const entry & e) { return e.key == key; });
    return found == entries.end() ? nullptr : &*found;
}

// {"ivr": {"layer": 2}} as ivr.layer
std::vector<entry> flatten(const json & object) {
    if (!object.is_object()) {
        refuse("a profile is a JSON object, not " + shown(object));
    }
    std::vector<entry> entries;
    for (const auto & [key, value] : object.items()) {
        if (is_group(key)) {
            if (!value.is_object()) {
                refuse(complaint("halfv." + key, shown(value), "it must be an object"));
            }
            for (const auto & [leaf, leaf_value] : value.items()) {
                entries.push_back({ key + "." + leaf, leaf_value });
            }
        } else if (key.find('.') != std::string::npos) {
            refuse("the key " + quoted(key) + " has a dot: write it as an object in an object");
        } else if (key != "version") {
            entries.push_back({ key, value });
        }
    }
    return entries;
}

value_type type_of(const evidence_key & key) { return key.type; }

// Of the profile or of the evidence: keys that exist, and values of the types that the specification gives them.
template <typename K, size_t N>
void check(const std::vector<entry> & entries, const K (& keys)[N]) {
    for (const entry & e : entries) {
        if (e.is_evidence() != std::is_same_v<K, evidence_key>) {
            continue;
        }
        std::string names;
        const K * known = nullptr;
        for (const K & k : keys) {
            names += std::string(names.empty() ? "halfv." : ", halfv.") + k.name;
            known  = e.key == k.name ? &k : known;
        }
        if (!known) {
            refuse(quoted("halfv." + e.key) + " is not a key of a profile: those are " + names);
        }
        if (!fits(e.value, type_of(*known))) {
            refuse(complaint("halfv." + e.key, shown(e.value), rule_of(type_of(*known))));
        }
    }
}

key_value value_of(const json & value, value_type type) {
    switch (type) {
        case value_type::whole:   return value.get<uint32_t>();
        case value_type::number:  return value.get<float>();
        case value_type::text:    return value.get<std::string>();
        case value_type::wholes:  return value.get<std::vector<uint32_t>>();
        case value_type::numbers: return value.get<std::vector<float>>();
    }
    return {};
}

std::string first_not_finite(const json & value) {
    for (const json & item : value.is_array() ? value : json::array({ value })) {
        if (const float number = item; !std::isfinite(number)) {
            return std::to_string(number);
        }
    }
    return "";
}

} // namespace

json_profile parse_profile(const std::string & text) {
    const json tree = parse(text);
    const std::vector<entry> entries = flatten(tree);

    if (!tree.contains("version") || tree["version"].is_null()) {
        refuse(missing("halfv.version"));
    }
    if (tree["version"] != HALFV_PROFILE_VERSION) {
        refuse(wrong_version(shown(tree["version"])));
    }
    check(entries, PROFILE_KEYS);
    key_values values;
    for (size_t i = 0; i < values.size(); ++i) {
        const profile_key & key = PROFILE_KEYS[i];
        const entry * e = find(entries, key.name);
        if (e) {
            values[i] = value_of(e->value, type_of(key));
        } else if (key.use == key_use::needed) {
            refuse(missing(std::string("halfv.") + key.name));
        }
    }
    json_profile parsed = { make_profile(values), {} };
    check(entries, EVIDENCE_KEYS);
    for (const evidence_key & k : EVIDENCE_KEYS) {
        const entry * e = find(entries, k.name);
        if (!e || (k.type != value_type::numbers && k.type != value_type::number)) {
            continue;
        }
        evidence found = { "halfv." + e->key, std::nullopt, e->key == "calibration.layer_kl" ? 0u : 1u, first_not_finite(e->value) };
        if (k.type == value_type::numbers) {
            found.n_values = e->value.size();
        }
        parsed.calibration.push_back(found);
    }
    return parsed;
}

std::string validate(const std::vector<evidence> & calibration, uint32_t n_layer) {
    for (const evidence & e : calibration) {
        const size_t expected = n_layer + e.n_beyond_layers;
        if (e.n_values && *e.n_values != expected) {
            return complaint(e.key, std::to_string(*e.n_values) + " values",
                    "a model of " + std::to_string(n_layer) + " layers has " + std::to_string(expected));
        }
        if (!e.not_finite.empty()) {
            return complaint(e.key, e.not_finite, "it must be finite");
        }
    }
    return "";
}

} // namespace halfv
