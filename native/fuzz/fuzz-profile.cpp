// A profile in the metadata of a GGUF: keys that are there, missing, of any type and value. A model that loads is used.

#include "tiny-model.h"

#include "halfv-keys.h"

#include <cmath>
#include <cstring>

using namespace fuzz;

static const std::vector<std::string> & keys() {
    static const std::vector<std::string> res = []() {
        std::vector<std::string> names = { "halfv.version", "halfv.calibration.samples", "halfv.calibration.layer_kl" };
        for (const halfv::profile_key & key : halfv::PROFILE_KEYS) { names.push_back(std::string("halfv.") + key.name); }
        return names;
    }();
    return res;
}

static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void set_value(gguf_context * out, const char * key, choices & in) {
    const uint32_t word = in.below(4) ? in.below(8) : in.take(4); // mostly small
    switch (in.below(11)) {
        case 0: case 1: case 2: gguf_set_val_u32(out, key, word); break;
        case 3: case 4: gguf_set_val_f32(out, key, word < 8 ? (float) word/4 : as_float(word)); break;
        case 5: gguf_set_val_str(out, key, in.text(in.below(24)).c_str()); break;
        case 6: gguf_set_val_str(out, key, in.below(2) ? "frozen" : "dropped"); break;
        case 7: gguf_set_val_i32(out, key, (int32_t) word); break;
        case 8: gguf_set_val_f64(out, key, as_float(word)); break;
        case 9: gguf_set_val_bool(out, key, word & 1); break;
        default: {
            const std::vector<float> list(in.below(9), as_float(word));
            gguf_set_arr_data(out, key, in.below(2) ? GGUF_TYPE_FLOAT32 : GGUF_TYPE_UINT32, list.data(), list.size());
        }
    }
}

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    be_quiet();
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const std::string path = file_name("profile.gguf");
    choices in = { data, size };
    write_model(path, [&](gguf_context * out) {
        const uint32_t known = in.take(1);
        if (known & 1) { write_profile(out, known & 2 ? "frozen" : "dropped", known & 4 ? 0.25f : 0.0f); }
        while (in.left()) {
            const uint32_t which = in.below(keys().size() + 1);
            if (which < keys().size()) {
                set_value(out, keys()[which].c_str(), in);
            } else {
                const std::string any = "halfv." + in.text(in.below(12));
                if (any.size() < 64) { set_value(out, any.c_str(), in); }
            }
        }
    });
    llama_model * model = load_model(path);
    require(model != nullptr, "a profile keeps a model from loading");
    halfv_profile profile = {};
    profile.size = sizeof(profile);
    const int32_t rc = halfv_model_get_profile(model, &profile);
    llama_context * ctx = make_context(model, true);
    require((ctx != nullptr) == (rc == HALFV_OK || rc == HALFV_NOTHING), "context and profile disagree");
    if (rc != HALFV_OK && rc != HALFV_NOTHING) {
        require(*halfv_last_error() != '\0', "no word about what is wrong");
        for (const char * c = halfv_last_error(); *c; ++c) {
            require((unsigned char) *c >= ' ', "a control character in an error");
        }
    }
    if (ctx) {
        require(feed(ctx, 0, 3, false, false) == 0 && feed(ctx, 0, 12, true, false) == 0, "cannot decode");
        const int asked = feed(ctx, 0, 2, false, true);
        require(asked == 0 || asked == 1, "cannot decode");
        if (asked == 0) {
            const float * logits = llama_get_logits_ith(ctx, -1);
            require(logits && std::isfinite(logits[0]), "no logits");
        }
        llama_free(ctx);
    }
    llama_model_free(model);
    return 0;
}
