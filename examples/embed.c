// Ask about a picture from C. llama.h and mtmd.h are used as ever: llama_decode prunes by itself when the model file
// carries a profile. halfv.h says what was kept, and announces a second question.
//
//   embed MODEL.gguf MMPROJ.gguf PICTURE QUESTION [QUESTION ...]
//
// Answers go to stdout, everything else to stderr. Exit codes: 0, 1 (it failed), 2 (what was given is wrong).

#include "halfv.h"
#include "llama.h"
#include "mtmd-helper.h"
#include "mtmd.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_CTX = 4096, N_BATCH = 2048, N_ANSWER = 128, TEXT_BYTES = 1 << 16, MAX_QUESTIONS = 16 };
enum { DONE = 0, FAILED = 1, WRONG = 2 };

struct app {
    struct llama_model   * model;
    struct llama_context * ctx;
    struct llama_sampler * sampler;
    mtmd_context         * vision;
    mtmd_bitmap          * picture;
    llama_pos              n_past;   // position where the next text goes
    uint32_t               n_cells;  // tokens in the KV cache; a picture may have more of them than positions
    char                   held[TEXT_BYTES];   // the text that the KV cache holds
    char                   prompt[TEXT_BYTES]; // the whole conversation, as the model's template writes it
    char                   answers[MAX_QUESTIONS][N_ANSWER * 16];
};

static int say(int code, const char * format, ...) {
    va_list values;
    va_start(values, format);
    fputs("embed: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    return code;
}

static void log_errors(enum ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static int check_files(char ** paths, int count) {
    for (int i = 0; i < count; i++) {
        FILE * file = fopen(paths[i], "rb");
        if (!file) {
            return say(WRONG, "%s cannot be opened: check the name and the folder.", paths[i]);
        }
        fclose(file);
    }
    return DONE;
}

static int load(struct app * app, const char * model_path, const char * mmproj_path, const char * picture_path) {
    app->model = llama_model_load_from_file(model_path, llama_model_default_params());
    if (!app->model) {
        return say(WRONG, "%s cannot be loaded as a language model.", model_path);
    }
    // a program that chooses the profile itself calls halfv_model_set_profile here, before it makes a context
    struct halfv_profile profile = {.size = sizeof(profile)};
    if (halfv_model_get_profile(app->model, &profile) < 0) {
        return say(WRONG, "%s: %s", model_path, halfv_last_error());
    }

    struct mtmd_context_params vision_params = mtmd_context_params_default();
    vision_params.print_timings = false;
    app->vision = mtmd_init_from_file(mmproj_path, app->model, vision_params);
    if (!app->vision || !mtmd_support_vision(app->vision)) {
        return say(WRONG, "%s is not the vision encoder of %s.", mmproj_path, model_path);
    }
    app->picture =
        mtmd_helper_bitmap_init_from_file(app->vision, picture_path, false, mtmd_helper_init_opt_default()).bitmap;
    if (!app->picture || mtmd_bitmap_is_audio(app->picture)) {
        return say(WRONG, "%s is not a picture that can be read: give a PNG or JPEG.", picture_path);
    }

    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = N_CTX;
    params.n_batch = N_BATCH;
    if (mtmd_decode_use_non_causal(app->vision, NULL)) {
        params.n_ubatch = N_BATCH; // such a picture has to be one batch
    }
    app->ctx = llama_init_from_model(app->model, params);
    if (!app->ctx) {
        return say(FAILED, "there is no memory for a context of %d tokens.", N_CTX);
    }

    app->sampler = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(app->sampler, llama_sampler_init_greedy());
    return DONE;
}

// Writes the conversation up to the question of this number into app->prompt.
static int render(struct app * app, char ** questions, int number) {
    struct llama_chat_message messages[2 * MAX_QUESTIONS];
    static char first[TEXT_BYTES];
    if (snprintf(first, sizeof(first), "%s%s", mtmd_get_marker(app->vision), questions[0]) >= (int) sizeof(first)) {
        return say(WRONG, "the question is too long.");
    }
    int count = 0;
    for (int i = 0; i <= number; i++) {
        messages[count++] = (struct llama_chat_message) { "user", i == 0 ? first : questions[i] };
        if (i < number) {
            messages[count++] = (struct llama_chat_message) { "assistant", app->answers[i] };
        }
    }
    const char * template = llama_model_chat_template(app->model, NULL);
    const int32_t length = llama_chat_apply_template(template ? template : "chatml", messages, count, true, app->prompt,
                                                     TEXT_BYTES - 1);
    if (length < 0) {
        return say(WRONG, "the model's chat template is none that llama.cpp knows.");
    }
    if (length >= TEXT_BYTES) {
        return say(WRONG, "the conversation is too long.");
    }
    app->prompt[length] = '\0';
    return DONE;
}

// Evaluates what of app->prompt the KV cache does not hold; its last token gives logits.
static int evaluate(struct app * app, int number) {
    size_t n_held = strlen(app->held);
    if (strncmp(app->held, app->prompt, n_held) != 0) {
        return say(FAILED, "the chat template rewrites earlier messages, so the conversation cannot go on.");
    }
    const char * rest = app->prompt + n_held;
    mtmd_input_text text = { rest, strlen(rest), number == 0, true };
    const mtmd_bitmap * pictures[] = { app->picture };
    mtmd_input_chunks * chunks = mtmd_input_chunks_init();
    int code = DONE;
    if (mtmd_tokenize(app->vision, chunks, &text, pictures, number == 0) != 0) {
        code = say(FAILED, "the prompt and its picture cannot be tokenized.");
    } else if (app->n_cells + mtmd_helper_get_n_tokens(chunks) + N_ANSWER > N_CTX) {
        code = say(WRONG, "%zu tokens and an answer do not fit into the context of %d: give a smaller picture.",
                   app->n_cells + mtmd_helper_get_n_tokens(chunks), N_CTX);
    } else {
        if (number > 0) {
            halfv_topup(app->ctx, 0); // a new question: pruned tokens that matter to it come back
        }
        if (mtmd_helper_eval_chunks(app->vision, app->ctx, chunks, app->n_past, 0, N_BATCH, true, &app->n_past) != 0) {
            code = say(FAILED, "llama.cpp could not evaluate the prompt.");
        }
        app->n_cells += mtmd_helper_get_n_tokens(chunks);
    }
    mtmd_input_chunks_free(chunks);
    return code;
}

static int answer(struct app * app, int number) {
    const struct llama_vocab * vocab = llama_model_get_vocab(app->model);
    char * out = app->answers[number];
    size_t length = 0;
    for (int i = 0; i < N_ANSWER; i++) {
        llama_token token = llama_sampler_sample(app->sampler, app->ctx, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        char piece[256];
        int n = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, false);
        if (n < 0 || length + n >= sizeof(app->answers[0])) {
            break;
        }
        fwrite(piece, 1, n, stdout);
        fflush(stdout);
        memcpy(out + length, piece, n);
        length += n;
        if (llama_decode(app->ctx, llama_batch_get_one(&token, 1)) != 0) {
            return say(FAILED, "llama.cpp could not evaluate the answer.");
        }
        app->n_past++;
        app->n_cells++;
    }
    putchar('\n');
    out[length] = '\0';
    if (snprintf(app->held, TEXT_BYTES, "%s%s", app->prompt, out) >= TEXT_BYTES) {
        return say(WRONG, "the conversation is too long.");
    }
    return DONE;
}

static void report(const struct app * app) {
    struct halfv_stats stats = {.size = sizeof(stats)};
    if (halfv_get_stats(app->ctx, 0, &stats) != HALFV_OK) {
        say(DONE, "the model runs whole: %s", halfv_last_error());
        return;
    }
    const char * note = stats.outcome == HALFV_OUTCOME_UNPRUNED ? " (not pruned)" : "";
    say(DONE, "visual tokens %u -> %u -> %u%s; %.2f of the FLOPs; chosen in %.2f ms", stats.n_visual, stats.n_kept,
        stats.n_deep, note, stats.flops_dense > 0 ? stats.flops_spent / stats.flops_dense : 1.0, stats.us_select / 1e3);
}

int main(int argc, char ** argv) {
    if (argc < 5 || argc - 4 > MAX_QUESTIONS) {
        return say(WRONG, "usage: embed MODEL.gguf MMPROJ.gguf PICTURE QUESTION [QUESTION ...], at most %d questions",
                   MAX_QUESTIONS);
    }
    llama_log_set(log_errors, NULL);
    mtmd_helper_log_set(log_errors, NULL);
    llama_backend_init();

    static struct app app;
    int code = check_files(argv + 1, 3);
    if (code == DONE) {
        code = load(&app, argv[1], argv[2], argv[3]);
    }
    for (int i = 0; code == DONE && i < argc - 4; i++) {
        code = render(&app, argv + 4, i);
        code = code == DONE ? evaluate(&app, i) : code;
        code = code == DONE ? answer(&app, i) : code;
        if (code == DONE) {
            report(&app);
        }
    }

    llama_sampler_free(app.sampler);
    mtmd_bitmap_free(app.picture);
    mtmd_free(app.vision);
    llama_free(app.ctx);
    llama_model_free(app.model);
    llama_backend_free();
    return code;
}
