#pragma once

#include "halfv-compare.h"
#include "halfv-cost.h"
#include "halfv-device.h"
#include "halfv-memory.h"
#include "halfv-workers.h"

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

struct llama_context;

namespace halfv {

class prefill;
using prefill_ptr = std::unique_ptr<prefill>;

// Lazy prefill: a picture and what follows it run stage I only, until a batch asks for output. Then the sequence is
// settled: choose, stage II, choose or freeze, stage III. Lives in llama_context, next to its staged memory.
class prefill {
public:
    // null for a context that runs unpruned; says so if its model has a profile
    static prefill_ptr attach(llama_context & ctx);

    prefill(llama_context & ctx, staged_memory & memory);

    // Called by llama_context::decode once the batch is checked.
    //   a value: the batch is done, or failed and was undone; return it
    //   mctx set: everything but the last pass is done, run these steps
    //   neither: the batch has nothing lazy, go on as ever
    std::optional<int> decode(llama_memory_context_ptr & mctx);

    // graphs of single stages, so that their buffers are allocated at the start
    void reserve(uint32_t n_tokens);

    int32_t prepare(llama_seq_id seq_id); // HALFV_*

    // Adapters and control vectors are about to change: what waits goes on with those it was decoded under, and takes
    // the last token there is for the question.
    void settle_waiting();
    void before_control_vector(const float * data, size_t len, int32_t n_embd, int32_t il_start, int32_t il_end);

    // layer by layer through a prompt that was held back, in compare/
    void    hold(bool on);
    int32_t observe(const uint8_t * freeze, halfv_observer observer, void * user); // HALFV_*

    // of any context, as every model may be given pictures that lack rows
    static void begin_media(llama_context & ctx, halfv_media media);

    staged_memory & memory;

    bool     enabled     = true;

    struct own_settings { bool enabled = true; float keep = 0.0f; }; // 0: the profile's
    std::map<llama_seq_id, own_settings> own;

    // how tokens are chosen; other ways than our own are in compare/, and not in a build without it
#ifdef HALFV_NO_COMPARE
    static constexpr int32_t choice = HALFV_CHOICE_HALFV;
#else
    int32_t  choice      = HALFV_CHOICE_HALFV;
    uint32_t choice_seed = 0;
    halfv_chooser chooser = nullptr; // of HALFV_CHOICE_GIVEN
    void * chooser_user = nullptr;
#endif

private:
    enum class when { question, before_question };

    // A sequence's own settings, in force while it is settled.
    struct settings_of {
        settings_of(prefill & all, llama_seq_id seq_id);
        ~settings_of();
        prefill & all;
        const bool  enabled;
        const float keep;
    };

    // rows of one batch that belong to one sequence
    struct share {
        llama_seq_id seq_id;
        std::vector<int32_t> idxs;
        bool output;
    };

    bool prunes_now() const;
    bool applies(const image & im) const;
    bool is_large(const image & im) const;
    bool thins(const image & im, int stage) const; // III or one behind it, counted from 0
    bool asks_for(int stage) const; // whether the question chooses there
    bool is_narrow(const sequence & s, const row & r) const;
    narrow_tokens narrow_of(llama_seq_id seq_id, int stage, const std::vector<row> & rows, bool are_in) const; // and what they see
    bool may_split() const;
    bool splits(const std::vector<image> & images, const std::vector<row> & go) const;
    bool wants_attention() const { return choice >= HALFV_CHOICE_ATTENTION; } // rotated, of text too
    bool wants_queries()   const { return choice == HALFV_CHOICE_GIVEN; }     // of all tokens
    bool asks_with_all()   const { return memory.profile.ivr_query == HALFV_QUERY_QUESTION; } // of the question's tokens
    bool wants_rotated()   const { return wants_attention() || asks_with_all(); }
    bool is_lazy(llama_seq_id seq_id, bool visual) const;

    std::optional<int> decode_batch(llama_memory_context_ptr & mctx);
    halfv_reason refusal(const llama_batch & batch, bool visual) const;
    std::optional<int> decode_whole(llama_memory_context_ptr & mctx, const llama_batch & batch, bool visual, halfv_reason reason);
    void note_unpruned(const llama_batch & batch, halfv_reason reason);
    void report(image & im, halfv_reason reason);
    bool aborted();
    void book_as_prompt();

    int stage1(const share & part, bool visual);
    int settle(llama_seq_id seq_id, when moment, std::vector<step> * last);
    int run_on(llama_seq_id seq_id, std::vector<row> & rows, const std::vector<row> & fed, const graph_pass & pass, state_ref & query);
    int later_stages(llama_seq_id seq_id, sequence & s, state_ref query, std::vector<row> rows, bool split, std::vector<step> * last);
    size_t n_to_prepare(const sequence & s) const;
    bool   can_prepare(const sequence & s) const;
    int ask_by_last_text(llama_seq_id seq_id, sequence & s);

    // choosing, in halfv-choose.cpp
    void choose_stage2(sequence & s, when moment, std::vector<row> & go, std::vector<row> & wait, std::vector<row> & recalled);
    std::vector<uint8_t> choose_later(sequence & s, int stage, const state_ref & query, const std::vector<row> & rows);
    void count(sequence & s, image & im, int stage, const std::vector<row> & rows, const std::vector<int32_t> & chosen);
    std::vector<row> recall(sequence & s);
    size_t   first_that_fits(const sequence & s) const;
    size_t   first_open(const std::vector<row> & rows, const std::vector<image> & images, size_t fits) const;
    void     keep_turn(sequence & s, turn t);
    void     unprepare_what_will_not_fit(llama_seq_id seq_id, size_t n_text);
    void     unprepare_what_nobody_asks(llama_seq_id seq_id);
    void     unprepare_what_goes_on(llama_seq_id seq_id);
    std::vector<float> values_of(const state_ref & ref) const;
    // who chooses: a query, or those of a question's tokens, each of which also looks at the tokens up to it
    struct asking { std::vector<state_ref> queries, keys; };
    asking who_asks(const sequence & s) const;
    std::vector<float> score(const state_stores & stores, const std::vector<row> & rows, const asking & who);
    std::vector<float> score(const std::vector<row> & rows, const std::vector<float> & query) const; // one, on the host
    float scale_of_attention() const; // at the layer that is asked first
    std::vector<float> attention(const std::vector<row> & rows, std::vector<float> query) const;
    std::vector<int32_t> choose_otherwise(sequence & s, const std::vector<row> & rows, const std::vector<size_t> & members,
                                          const std::vector<float> & query, int k, int stage);
    std::vector<int32_t> choose_as_given(sequence & s, const std::vector<row> & rows, const std::vector<size_t> & members, int k, int stage);
    const std::vector<float> & final_norm();
    void make_features(std::vector<float> & states); // in place: as the last norm leaves them, of length 1
    std::vector<float> features_of(const std::vector<row> & rows);
    worker_pool & cover_workers();
    std::vector<int32_t> cover(const std::vector<row> & rows, const std::vector<int32_t> & anchors, int k);

    // passes, in halfv-passes.cpp
    int run(std::vector<step> steps, const std::function<void(const llama_ubatch &, const llm_graph_result &)> & collect);

    // rows for what a pass gives: a state for each token, keys of some, queries of all or of the last
    struct given {
        state_stores * stores = nullptr;
        bool stored = false; // they are on the device, and the pass writes them
        std::vector<state_ref> hidden, keys, queries;

        struct step::io rows(size_t first, size_t end) const;
        state_ref last_query() const { return queries.empty() ? state_ref() : queries.back(); }
    };
    given room_for(const graph_pass & pass, const std::vector<bool> & has_key); // on a device, if there is room
    void  bring_down(const llm_graph_result & res, const given & gives, size_t first, size_t end);

    std::vector<step> steps_of(llama_seq_id seq_id, const std::vector<row> & rows, const graph_pass & pass, const given * gives = nullptr) const;
    llama_ubatch ubatch_of_rows(llama_seq_id seq_id, const row * rows, uint32_t n, size_t most, bool by_kind) const; // floats of a row
    llama_ubatch ubatch_of_token(llama_seq_id seq_id, const row & r) const;
    llama_ubatch ubatch_of_batch(const llama_batch & batch, const std::vector<int32_t> & idxs, uint32_t n_seqs) const;
    std::vector<step> whole_steps(const llama_batch & batch, std::vector<share> parts) const;
    bool run(const device_graph & graph, const state_store & store, const std::vector<state_ref> & rows, float * out);
    void reserve_choice();
    void put_inputs(const device_graph & graph) const;
    void wait_for_device() const;
    void read(ggml_tensor * tensor, float * dst) const;
    void read(ggml_tensor * tensor, state_store & store, const std::vector<state_ref> & refs) const;

    // a prompt of one sequence, and the states that enter the layer it has come to
    struct held_prompt {
        llama_seq_id seq_id = -1;
        std::unique_ptr<state_store> states; // of the layer's input, deep-stack rows with it
        std::vector<row> rows;
    };
    int hold_batch(const llama_batch & batch, bool visual);
    float scale_of(const row & r) const;
    int observe_layers(held_prompt & prompt, const std::vector<uint8_t> & freeze, halfv_observer observer, void * user);
    int observe_layer(const held_prompt & prompt, int32_t il, float * out, float * attention);
    int frozen_logits(const held_prompt & prompt, int32_t il, float * logits);
    int last_logits(const held_prompt & prompt, const std::vector<row> & rows, int32_t first, float * logits);

    llama_context & ctx;
    cost_model cost;
    std::vector<float> output_norm;
    std::optional<worker_pool> workers; // from the first choice on
    int n_workers = 0;
    ggml_backend_buffer_ptr pinned;      // what `gram` is in, if the device prefers that
    std::unique_ptr<float[]> gram_memory; // or else
    float * gram = nullptr;              // the similarities of a group of tokens, from the device
    halfv_media media = HALFV_MEDIA_VISUAL;
    bool new_image = false;
    bool reserved  = false;
    bool stopped   = false; // the client's abort callback has said so, in this batch or call
    struct { std::vector<float> data; int32_t il_start = -1, il_end = -1; } control_vector; // the one in use
    uint64_t adapters_in_force() const; // a number for them; 0: none
    void note_adapters();
    uint32_t warned = 0; // bit per halfv_reason that the log has heard of
#ifdef HALFV_NO_COMPARE
    static constexpr bool held = false;
#else
    std::optional<held_prompt> held;
#endif
};

} // namespace halfv
