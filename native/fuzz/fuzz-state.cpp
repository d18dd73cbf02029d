// Saved states with errors in them. An input names a valid state of a tiny model and how to damage it: words that are
// changed, bytes that are cut or added. Whatever becomes of it is loaded, looked at and used.

#include "tiny-model.h"

#include <array>
#include <cstring>

using namespace fuzz;

namespace {

struct world {
    llama_model   * model;
    llama_context * ctx;
};

struct state {
    size_t world;
    bool whole; // of all sequences
    std::vector<uint8_t> bytes;
};

std::vector<world> worlds; // frozen and dropped, unified and not
std::vector<state> states;

std::vector<uint8_t> save(llama_context * ctx, bool whole) {
    std::vector<uint8_t> bytes(whole ? llama_state_get_size(ctx) : llama_state_seq_get_size(ctx, 0));
    const size_t n = whole ? llama_state_get_data(ctx, bytes.data(), bytes.size())
                           : llama_state_seq_get_data(ctx, bytes.data(), bytes.size(), 0);
    require(n == bytes.size(), "cannot save a state");
    return bytes;
}

void load(llama_context * ctx, const state & s, const std::vector<uint8_t> & bytes, llama_seq_id seq) {
    if (s.whole) {
        llama_state_set_data(ctx, bytes.data(), bytes.size());
    } else {
        llama_state_seq_set_data(ctx, bytes.data(), bytes.size(), seq);
    }
}

// pictures that wait, that are settled, prepared, with rows for top-up, of two sequences, in the middle of text
void make_states(size_t w) {
    llama_context * ctx = worlds[w].ctx;
    const auto keep = [&] {
        for (const bool whole : { false, true }) { states.push_back({ w, whole, save(ctx, whole) }); }
    };
    const auto say = [&](int n, bool picture, bool asks, llama_seq_id seq = 0) {
        require(feed(ctx, seq, n, picture, asks) == 0, "cannot decode");
    };
    halfv_set_undo_bytes(ctx, 1 << 20);
    say(3, false, false);
    say(8, true, false);
    keep();
    say(2, false, true);
    keep();
    require(halfv_topup(ctx, 0) == HALFV_OK, "nothing to top up");
    say(6, true, false, 1);
    keep();
    say(2, false, false);
    say(5, true, false);
    require(halfv_prepare(ctx, 0) == HALFV_OK, "nothing to prepare");
    keep();
    llama_memory_clear(llama_get_memory(ctx), true);
}

std::vector<uint8_t> damaged(const state & s, choices & in) {
    auto bytes = s.bytes;
    while (in.left() && !bytes.empty()) {
        const uint32_t kind = in.below(8);
        // what HalfV adds is at the end, so half of the damage is counted from there
        size_t at = in.take(2) % bytes.size();
        if (kind & 1) { at = bytes.size() - 1 - at; }
        at &= ~(size_t) 3;
        switch (kind/2) {
            case 0: { // a word becomes another
                const uint32_t value = in.below(2) ? in.take(4) : (uint32_t) (int32_t) (int8_t) in.take(1);
                memcpy(bytes.data() + at, &value, std::min<size_t>(4, bytes.size() - at));
                break;
            }
            case 1: { // or a little more or less
                uint32_t value = 0;
                const size_t n = std::min<size_t>(4, bytes.size() - at);
                memcpy(&value, bytes.data() + at, n);
                value += (uint32_t) (int32_t) (int8_t) in.take(1);
                memcpy(bytes.data() + at, &value, n);
                break;
            }
            case 2: { // bytes are missing
                const size_t n = std::min<size_t>(1 + in.take(1), bytes.size() - at);
                bytes.erase(bytes.begin() + at, bytes.begin() + at + n);
                break;
            }
            default: // or too many
                bytes.insert(bytes.begin() + at, 1 + in.take(1), (uint8_t) in.take(1));
        }
        if (bytes.size() > 1 << 20) { break; }
    }
    return bytes;
}

void look_at(llama_context * ctx) {
    for (llama_seq_id seq = 0; seq < 2; ++seq) {
        halfv_stats stats = {};
        stats.size = sizeof(stats);
        halfv_get_stats(ctx, seq, &stats);
        for (uint32_t image = 0; image < 4 && halfv_image_size(ctx, seq, image) >= 0; ++image) {
            std::array<int32_t, 16> tokens;
            for (const int stage : { 2, 3 }) { halfv_image_tokens(ctx, seq, image, stage, tokens.data(), tokens.size()); }
        }
    }
}

void use(llama_context * ctx, choices & in) {
    llama_memory_t memory = llama_get_memory(ctx);
    for (int i = 0; i < 6; ++i) {
        const llama_seq_id seq = in.below(2);
        const llama_pos    at  = (llama_pos) in.below(24) - 1;
        switch (in.below(12)) {
            case 0: llama_memory_seq_rm(memory, seq, at, -1); break;
            case 1: llama_memory_seq_rm(memory, seq, at, at + 3); break;
            case 2: llama_memory_seq_cp(memory, seq, 1 - seq, -1, -1); break;
            case 3: llama_memory_seq_add(memory, seq, at, -1, in.below(2) ? 2 : -2); break;
            case 4: halfv_prepare(ctx, seq); break;
            case 5: halfv_topup(ctx, seq); break;
            case 6: halfv_set_enabled(ctx, in.below(2)); break;
            case 7: feed(ctx, seq, 5, true, false); break;
            case 8: save(ctx, in.below(2)); break;
            default: feed(ctx, seq, 1 + (int) in.below(3), false, true);
        }
    }
    for (llama_seq_id seq = 0; seq < 2; ++seq) { feed(ctx, seq, 1, false, true); }
}

} // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    be_quiet();
    for (const bool frozen : { true, false }) {
        const std::string path = file_name(frozen ? "frozen.gguf" : "dropped.gguf");
        write_model(path, [&](gguf_context * out) { write_profile(out, frozen ? "frozen" : "dropped", frozen ? 0.0f : 0.3f); });
        llama_model * model = load_model(path);
        require(model != nullptr, "cannot load the model");
        for (const bool unified : { true, false }) {
            llama_context * ctx = make_context(model, unified);
            require(ctx != nullptr, "cannot make a context");
            worlds.push_back({ model, ctx });
            make_states(worlds.size() - 1);
        }
    }
    atexit([] {
        for (const auto & w : worlds) { llama_free(w.ctx); }
        for (size_t i = 0; i < worlds.size(); i += 2) { llama_model_free(worlds[i].model); }
        worlds.clear();
    });
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    choices in = { data, size };
    const state & s = states[in.below(states.size())];
    const llama_seq_id seq = in.below(2);
    const size_t n_use = std::min<size_t>(24, in.size/2);
    choices how = { in.data, n_use };
    in.data += n_use;
    in.size -= n_use;

    llama_context * ctx = worlds[s.world].ctx;
    load(ctx, s, damaged(s, in), seq);
    look_at(ctx);
    use(ctx, how);
    look_at(ctx);
    halfv_set_enabled(ctx, true);
    llama_memory_clear(llama_get_memory(ctx), true);
    return 0;
}
