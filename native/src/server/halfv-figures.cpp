// what a request asks of pruning, and what it is told of it

#include "halfv-server.h"

#include "halfv.h"
#include "mtmd.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <sstream>

namespace halfv::server {

//
// wishes
//

static std::string quoted(const common_json & value) {
    const std::string text = value.dump();
    return text.size() <= 80 ? text : text.substr(0, 77) + "...";
}

wish wish::of(const common_json & request) {
    wish res;
    if (!request.contains("halfv")) {
        return res;
    }
    const auto & given = request.at("halfv");
    if (given.is_boolean()) {
        res.enabled = given.get<bool>();
        return res;
    }
    if (!given.is_object()) {
        throw std::invalid_argument("\"halfv\": " + quoted(given) + " is not valid: it must be true, false or an object");
    }
    for (const auto & item : given.items()) {
        if (item.key() != "keep") {
            throw std::invalid_argument("\"halfv\" has no setting " + common_json::make(item.key()).dump() + ": it has \"keep\"");
        }
        const double keep = item.value().is_number() ? item.value().get<double>() : 0.0;
        if (!(keep > 0.0 && keep <= 1.0)) {
            throw std::invalid_argument("\"halfv\": {\"keep\": " + quoted(item.value()) + "} is not valid: it must be above 0 and at most 1");
        }
        res.keep = std::max((float) keep, 1e-6f);
    }
    return res;
}

std::string wish::name() const {
    std::ostringstream out;
    if (!enabled) {
        out << NAME_MARK << "whole";
    } else if (keep > 0.0f) {
        out << NAME_MARK << "keep=" << keep;
    }
    return out.str();
}

static thread_local std::string wish_name;
static thread_local std::map<std::string, int> named; // how often each picture was, in the prompt at hand

preparing::preparing(const wish & w) { wish_name = w.name(); }
preparing::~preparing()              { wish_name.clear(); }

void begin_prompt() {
    named.clear();
}

void name_media(mtmd_bitmap * bitmap) {
    const char * id = mtmd_bitmap_get_id(bitmap);
    if (!id || !*id) {
        return;
    }
    std::string name = id;
    if (const int n_before = named[name]++) {
        name += NAME_MARK + ("again=" + std::to_string(n_before));
    }
    name += wish_name;
    if (name != id) {
        mtmd_bitmap_set_id(bitmap, name.c_str());
    }
}

//
// figures
//

static halfv_stats stats_of(const llama_context * ctx, int32_t seq, bool & there) {
    halfv_stats res = {};
    res.size = sizeof(res);
    there = halfv_get_stats(ctx, seq, &res) == HALFV_OK;
    return res;
}

static constexpr int32_t NO_PROFILE = -1; // beside enum halfv_reason

static struct {
    std::atomic<uint64_t> n_requests{0}, n_images{0}, n_visual{0}, n_kept{0}, n_deep{0}, n_encoded{0}, n_remembered{0};
    std::atomic<int64_t>  us_encode{0}, us_select{0};
} total;

void figures::begin(llama_context * ctx, int32_t seq, const wish & w) {
    if (begun) {
        return;
    }
    begun = true;
    halfv_seq_set_enabled(ctx, seq, w.enabled);
    halfv_seq_set_keep(ctx, seq, w.keep);
    bool there;
    us_select_before = stats_of(ctx, seq, there).us_select;
}

void figures::read(const llama_context * ctx, int32_t seq) {
    bool there;
    const halfv_stats stats = stats_of(ctx, seq, there);
    if (!there) {
        outcome = HALFV_OUTCOME_UNPRUNED; // this model runs whole
        reason  = NO_PROFILE;
        n_visual = n_kept = n_deep = n_given;
        return;
    }
    outcome  = stats.outcome;
    reason   = stats.reason;
    n_images = stats.n_images;
    n_visual = stats.n_visual;
    n_kept   = stats.n_kept;
    n_deep   = stats.n_deep;
    us_select = std::max<int64_t>(0, stats.us_select - us_select_before);
}

void figures::finish(const llama_context * ctx, int32_t seq) {
    read(ctx, seq);
    if (n_images + n_encoded + n_remembered == 0) {
        return;
    }
    total.n_requests++;
    total.n_images     += n_images;
    total.n_visual     += n_visual;
    total.n_kept       += n_kept;
    total.n_deep       += n_deep;
    total.n_encoded    += n_encoded;
    total.n_remembered += n_remembered;
    total.us_encode    += us_encode;
    total.us_select    += us_select;
}

static const char * reason_name(int32_t outcome, int32_t reason) {
    if (outcome != HALFV_OUTCOME_UNPRUNED) {
        return nullptr;
    }
    switch (reason) {
        case NO_PROFILE:            return "no profile";
        case HALFV_REASON_SMALL:    return "small";
        case HALFV_REASON_DISABLED: return "disabled";
        case HALFV_REASON_OUTPUTS:  return "outputs";
        case HALFV_REASON_SHARED:   return "shared";
        case HALFV_REASON_BUDGET:   return "budget";
        case HALFV_REASON_UNASKED:  return "unasked";
        default:                    return "unknown";
    }
}

void figures::add_timings(common_json & timings, double prompt_ms) const {
    if (n_images + n_encoded + n_remembered == 0) {
        return;
    }
    common_json res = common_json::object({
        {"images",        n_images},
        {"visual_seen",   n_visual},
        {"visual_kept",   n_kept},
        {"visual_deep",   n_deep},
        {"encoded_n",     n_encoded},
        {"remembered_n",  n_remembered},
        {"encode_ms",     us_encode/1000.0},
        {"select_ms",     us_select/1000.0},
        {"prefill_ms",    std::max(0.0, prompt_ms - (us_encode + us_select)/1000.0)},
    });
    if (n_shrunk > 0) {
        res["shrunk_by"] = n_shrunk;
    }
    if (const char * why = reason_name(outcome, reason)) {
        res["not_pruned"] = why;
    }
    timings["halfv"] = std::move(res);
}

void figures::add_usage(common_json & details) const {
    if (n_visual > 0) {
        details["visual_tokens"]      = n_visual;
        details["visual_tokens_kept"] = n_kept;
        details["visual_tokens_deep"] = n_deep;
    }
}

std::string metrics() {
    std::ostringstream out;
    const auto add = [&](const char * name, const char * what, double value) {
        out << "# HELP halfv:" << name << " " << what << "\n# TYPE halfv:" << name << " counter\nhalfv:" << name << " " << value << "\n";
    };
    out.precision(15);
    add("requests_total",          "Requests with pictures that were answered.",              total.n_requests);
    add("images_total",            "Pictures in their prompts.",                              total.n_images);
    add("visual_tokens_total",     "Visual tokens in their prompts.",                         total.n_visual);
    add("visual_kept_total",       "Of them, those that went on after the first layers.",     total.n_kept);
    add("visual_deep_total",       "Of them, those that deep layers updated.",                total.n_deep);
    add("encoded_total",           "Chunks of media that went through the encoder.",          total.n_encoded);
    add("remembered_total",        "Chunks of media whose embeddings were in the cache.",     total.n_remembered);
    add("encode_seconds_total",    "Time spent in the encoder.",                              total.us_encode/1e6);
    add("select_seconds_total",    "Time spent choosing visual tokens.",                      total.us_select/1e6);
    return out.str();
}

} // namespace halfv::server
