"""llama.h: the functions that are used of it, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"
# ruff: noqa: F403, F405

from ctypes import POINTER
from typing import TYPE_CHECKING, Annotated, Any

from halfv_cpp.c_types import (
    Address,
    Bool,
    Buffer,
    Float,
    FloatPointer,
    Floats,
    Handle,
    Handles,
    Int,
    Int32,
    Int32s,
    MaybeHandle,
    MaybeText,
    Size,
    Text,
    UInt8s,
    UInt32,
    functions_of,
)
from halfv_cpp.ggml_h import ggml_abort_callback, ggml_log_callback
from halfv_cpp.llama_types import *

if TYPE_CHECKING:
    from halfv_cpp.c_types import To

function = functions_of("llama")


# LLAMA_API struct llama_model_params llama_model_default_params(void);
@function
def llama_model_default_params() -> llama_model_params: ...


# LLAMA_API struct llama_context_params llama_context_default_params(void);
@function
def llama_context_default_params() -> llama_context_params: ...


# LLAMA_API struct llama_sampler_chain_params llama_sampler_chain_default_params(void);
@function
def llama_sampler_chain_default_params() -> llama_sampler_chain_params: ...


# LLAMA_API struct llama_model_quantize_params llama_model_quantize_default_params(void);
@function
def llama_model_quantize_default_params() -> llama_model_quantize_params: ...


# LLAMA_API void llama_backend_init(void);
@function
def llama_backend_init() -> None: ...


# LLAMA_API struct llama_model * llama_model_load_from_file(const char * path_model, struct llama_model_params params);
@function
def llama_model_load_from_file(path_model: Text, params: llama_model_params, /) -> MaybeHandle: ...


# LLAMA_API void llama_model_free(struct llama_model * model);
@function
def llama_model_free(model: Handle, /) -> None: ...


# LLAMA_API struct llama_context * llama_init_from_model(struct llama_model * model,
#                                                        struct llama_context_params params);
@function
def llama_init_from_model(model: Handle, params: llama_context_params, /) -> MaybeHandle: ...


# LLAMA_API void llama_free(struct llama_context * ctx);
@function
def llama_free(ctx: Handle, /) -> None: ...


# LLAMA_API uint32_t llama_n_ctx(const struct llama_context * ctx);
@function
def llama_n_ctx(ctx: Handle, /) -> UInt32: ...


# LLAMA_API uint32_t llama_n_batch(const struct llama_context * ctx);
@function
def llama_n_batch(ctx: Handle, /) -> UInt32: ...


# LLAMA_API uint32_t llama_n_ubatch(const struct llama_context * ctx);
@function
def llama_n_ubatch(ctx: Handle, /) -> UInt32: ...


# LLAMA_API const struct llama_model * llama_get_model(const struct llama_context * ctx);
@function
def llama_get_model(ctx: Handle, /) -> Handle: ...


# LLAMA_API llama_memory_t llama_get_memory(const struct llama_context * ctx);
@function
def llama_get_memory(ctx: Handle, /) -> Handle: ...


# LLAMA_API const struct llama_vocab * llama_model_get_vocab(const struct llama_model * model);
@function
def llama_model_get_vocab(model: Handle, /) -> Handle: ...


# LLAMA_API enum llama_rope_type llama_model_rope_type(const struct llama_model * model);
@function
def llama_model_rope_type(model: Handle, /) -> Int: ...


# LLAMA_API int32_t llama_model_n_ctx_train(const struct llama_model * model);
@function
def llama_model_n_ctx_train(model: Handle, /) -> Int32: ...


# LLAMA_API int32_t llama_model_n_embd(const struct llama_model * model);
@function
def llama_model_n_embd(model: Handle, /) -> Int32: ...


# LLAMA_API int32_t llama_model_n_embd_inp(const struct llama_model * model);
@function
def llama_model_n_embd_inp(model: Handle, /) -> Int32: ...


# LLAMA_API int32_t llama_model_n_layer(const struct llama_model * model);
@function
def llama_model_n_layer(model: Handle, /) -> Int32: ...


# LLAMA_API int32_t llama_model_n_head_kv(const struct llama_model * model);
@function
def llama_model_n_head_kv(model: Handle, /) -> Int32: ...


# LLAMA_API int32_t llama_model_n_swa(const struct llama_model * model);
@function
def llama_model_n_swa(model: Handle, /) -> Int32: ...


# LLAMA_API enum llama_vocab_type llama_vocab_type(const struct llama_vocab * vocab);
@function
def llama_vocab_type(vocab: Handle, /) -> Int: ...


# LLAMA_API int32_t llama_vocab_n_tokens(const struct llama_vocab * vocab);
@function
def llama_vocab_n_tokens(vocab: Handle, /) -> Int32: ...


# LLAMA_API const char * llama_model_chat_template(const struct llama_model * model, const char * name);
@function
def llama_model_chat_template(model: Handle, name: MaybeText, /) -> MaybeText: ...


# LLAMA_API bool llama_model_is_hybrid(const struct llama_model * model);
@function
def llama_model_is_hybrid(model: Handle, /) -> Bool: ...


# LLAMA_API uint32_t llama_model_quantize(const char * fname_inp, const char * fname_out,
#                                         const llama_model_quantize_params * params);
@function
def llama_model_quantize(
    fname_inp: Text,
    fname_out: Text,
    params: Annotated["To[llama_model_quantize_params]", POINTER(llama_model_quantize_params)],
    /,
) -> UInt32: ...


# LLAMA_API struct llama_adapter_lora * llama_adapter_lora_init(struct llama_model * model, const char * path_lora);
@function
def llama_adapter_lora_init(model: Handle, path_lora: Text, /) -> MaybeHandle: ...


# LLAMA_API int32_t llama_set_adapters_lora(struct llama_context * ctx, struct llama_adapter_lora ** adapters,
#                                           size_t n_adapters, float * scales);
@function
def llama_set_adapters_lora(ctx: Handle, adapters: Handles, n_adapters: Size, scales: Floats, /) -> Int32: ...


# LLAMA_API void llama_memory_clear(llama_memory_t mem, bool data);
@function
def llama_memory_clear(mem: Handle, data: Bool, /) -> None: ...


# LLAMA_API bool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
@function
def llama_memory_seq_rm(mem: Handle, seq_id: Int32, p0: Int32, p1: Int32, /) -> Bool: ...


# LLAMA_API void llama_memory_seq_cp(llama_memory_t mem, llama_seq_id seq_id_src, llama_seq_id seq_id_dst,
#                                    llama_pos p0, llama_pos p1);
@function
def llama_memory_seq_cp(mem: Handle, seq_id_src: Int32, seq_id_dst: Int32, p0: Int32, p1: Int32, /) -> None: ...


# LLAMA_API void llama_memory_seq_keep(llama_memory_t mem, llama_seq_id seq_id);
@function
def llama_memory_seq_keep(mem: Handle, seq_id: Int32, /) -> None: ...


# LLAMA_API void llama_memory_seq_add(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1,
#                                     llama_pos delta);
@function
def llama_memory_seq_add(mem: Handle, seq_id: Int32, p0: Int32, p1: Int32, delta: Int32, /) -> None: ...


# LLAMA_API void llama_memory_seq_div(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d);
@function
def llama_memory_seq_div(mem: Handle, seq_id: Int32, p0: Int32, p1: Int32, d: Int, /) -> None: ...


# LLAMA_API llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id);
@function
def llama_memory_seq_pos_max(mem: Handle, seq_id: Int32, /) -> Int32: ...


# LLAMA_API size_t llama_state_get_size(struct llama_context * ctx);
@function
def llama_state_get_size(ctx: Handle, /) -> Size: ...


# LLAMA_API size_t llama_state_get_data(struct llama_context * ctx, uint8_t * dst, size_t size);
@function
def llama_state_get_data(ctx: Handle, dst: UInt8s, size: Size, /) -> Size: ...


# LLAMA_API size_t llama_state_set_data(struct llama_context * ctx, const uint8_t * src, size_t size);
@function
def llama_state_set_data(ctx: Handle, src: UInt8s, size: Size, /) -> Size: ...


# LLAMA_API size_t llama_state_seq_get_size(struct llama_context * ctx, llama_seq_id seq_id);
@function
def llama_state_seq_get_size(ctx: Handle, seq_id: Int32, /) -> Size: ...


# LLAMA_API size_t llama_state_seq_get_data(struct llama_context * ctx, uint8_t * dst, size_t size,
#                                           llama_seq_id seq_id);
@function
def llama_state_seq_get_data(ctx: Handle, dst: UInt8s, size: Size, seq_id: Int32, /) -> Size: ...


# LLAMA_API size_t llama_state_seq_set_data(struct llama_context * ctx, const uint8_t * src, size_t size,
#                                           llama_seq_id dest_seq_id);
@function
def llama_state_seq_set_data(ctx: Handle, src: UInt8s, size: Size, dest_seq_id: Int32, /) -> Size: ...


# LLAMA_API size_t llama_state_seq_get_size_ext(struct llama_context * ctx, llama_seq_id seq_id,
#                                               llama_state_seq_flags flags);
@function
def llama_state_seq_get_size_ext(ctx: Handle, seq_id: Int32, flags: UInt32, /) -> Size: ...


# LLAMA_API size_t llama_state_seq_get_data_ext(struct llama_context * ctx, uint8_t * dst, size_t size,
#                                               llama_seq_id seq_id, llama_state_seq_flags flags);
@function
def llama_state_seq_get_data_ext(ctx: Handle, dst: UInt8s, size: Size, seq_id: Int32, flags: UInt32, /) -> Size: ...


# LLAMA_API size_t llama_state_seq_set_data_ext(struct llama_context * ctx, const uint8_t * src, size_t size,
#                                               llama_seq_id dest_seq_id, llama_state_seq_flags flags);
@function
def llama_state_seq_set_data_ext(
    ctx: Handle, src: UInt8s, size: Size, dest_seq_id: Int32, flags: UInt32, /
) -> Size: ...


# LLAMA_API struct llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
@function
def llama_batch_init(n_tokens: Int32, embd: Int32, n_seq_max: Int32, /) -> llama_batch: ...


# LLAMA_API void llama_batch_free(struct llama_batch batch);
@function
def llama_batch_free(batch: llama_batch, /) -> None: ...


# LLAMA_API int32_t llama_decode(struct llama_context * ctx, struct llama_batch batch);
@function
def llama_decode(ctx: Handle, batch: llama_batch, /) -> Int32: ...


# LLAMA_API void llama_set_embeddings(struct llama_context * ctx, bool embeddings);
@function
def llama_set_embeddings(ctx: Handle, embeddings: Bool, /) -> None: ...


# LLAMA_API void llama_set_causal_attn(struct llama_context * ctx, bool causal_attn);
@function
def llama_set_causal_attn(ctx: Handle, causal_attn: Bool, /) -> None: ...


# LLAMA_API void llama_set_abort_callback(struct llama_context * ctx, ggml_abort_callback abort_callback,
#                                         void * abort_callback_data);
@function
def llama_set_abort_callback(
    ctx: Handle, abort_callback: Annotated[Any, ggml_abort_callback], abort_callback_data: Address, /
) -> None: ...


# LLAMA_API void llama_synchronize(struct llama_context * ctx);
@function
def llama_synchronize(ctx: Handle, /) -> None: ...


# LLAMA_API float * llama_get_logits_ith(struct llama_context * ctx, int32_t i);
@function
def llama_get_logits_ith(ctx: Handle, i: Int32, /) -> FloatPointer: ...


# LLAMA_API float * llama_get_embeddings_ith(struct llama_context * ctx, int32_t i);
@function
def llama_get_embeddings_ith(ctx: Handle, i: Int32, /) -> FloatPointer: ...


# LLAMA_API bool llama_vocab_is_eog(const struct llama_vocab * vocab, llama_token token);
@function
def llama_vocab_is_eog(vocab: Handle, token: Int32, /) -> Bool: ...


# LLAMA_API llama_token llama_vocab_bos(const struct llama_vocab * vocab);
@function
def llama_vocab_bos(vocab: Handle, /) -> Int32: ...


# LLAMA_API llama_token llama_vocab_eos(const struct llama_vocab * vocab);
@function
def llama_vocab_eos(vocab: Handle, /) -> Int32: ...


# LLAMA_API bool llama_vocab_get_add_bos(const struct llama_vocab * vocab);
@function
def llama_vocab_get_add_bos(vocab: Handle, /) -> Bool: ...


# LLAMA_API bool llama_vocab_get_add_eos(const struct llama_vocab * vocab);
@function
def llama_vocab_get_add_eos(vocab: Handle, /) -> Bool: ...


# LLAMA_API int32_t llama_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len,
#                                  llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special);
@function
def llama_tokenize(
    vocab: Handle,
    text: Text,
    text_len: Int32,
    tokens: Int32s,
    n_tokens_max: Int32,
    add_special: Bool,
    parse_special: Bool,
    /,
) -> Int32: ...


# LLAMA_API int32_t llama_token_to_piece(const struct llama_vocab * vocab, llama_token token, char * buf,
#                                        int32_t length, int32_t lstrip, bool special);
@function
def llama_token_to_piece(
    vocab: Handle, token: Int32, buf: Buffer, length: Int32, lstrip: Int32, special: Bool, /
) -> Int32: ...


# LLAMA_API void llama_sampler_accept(struct llama_sampler * smpl, llama_token token);
@function
def llama_sampler_accept(smpl: Handle, token: Int32, /) -> None: ...


# LLAMA_API void llama_sampler_apply(struct llama_sampler * smpl, llama_token_data_array * cur_p);
@function
def llama_sampler_apply(
    smpl: Handle, cur_p: Annotated["To[llama_token_data_array]", POINTER(llama_token_data_array)], /
) -> None: ...


# LLAMA_API void llama_sampler_free(struct llama_sampler * smpl);
@function
def llama_sampler_free(smpl: Handle, /) -> None: ...


# LLAMA_API struct llama_sampler * llama_sampler_chain_init(struct llama_sampler_chain_params params);
@function
def llama_sampler_chain_init(params: llama_sampler_chain_params, /) -> Handle: ...


# LLAMA_API void llama_sampler_chain_add(struct llama_sampler * chain, struct llama_sampler * smpl);
@function
def llama_sampler_chain_add(chain: Handle, smpl: Handle, /) -> None: ...


# LLAMA_API struct llama_sampler * llama_sampler_init_greedy(void);
@function
def llama_sampler_init_greedy() -> Handle: ...


# LLAMA_API struct llama_sampler * llama_sampler_init_dist(uint32_t seed);
@function
def llama_sampler_init_dist(seed: UInt32, /) -> Handle: ...


# LLAMA_API struct llama_sampler * llama_sampler_init_top_k(int32_t k);
@function
def llama_sampler_init_top_k(k: Int32, /) -> Handle: ...


# LLAMA_API struct llama_sampler * llama_sampler_init_top_p(float p, size_t min_keep);
@function
def llama_sampler_init_top_p(p: Float, min_keep: Size, /) -> Handle: ...


# LLAMA_API struct llama_sampler * llama_sampler_init_min_p(float p, size_t min_keep);
@function
def llama_sampler_init_min_p(p: Float, min_keep: Size, /) -> Handle: ...


# LLAMA_API struct llama_sampler * llama_sampler_init_temp(float t);
@function
def llama_sampler_init_temp(t: Float, /) -> Handle: ...


# LLAMA_API struct llama_sampler * llama_sampler_init_grammar(const struct llama_vocab * vocab,
#                                                             const char * grammar_str, const char * grammar_root);
@function
def llama_sampler_init_grammar(vocab: Handle, grammar_str: Text, grammar_root: Text, /) -> MaybeHandle: ...


# LLAMA_API llama_token llama_sampler_sample(struct llama_sampler * smpl, struct llama_context * ctx, int32_t idx);
@function
def llama_sampler_sample(smpl: Handle, ctx: Handle, idx: Int32, /) -> Int32: ...


# LLAMA_API const char * llama_print_system_info(void);
@function
def llama_print_system_info() -> Text: ...


# LLAMA_API void llama_log_set(ggml_log_callback log_callback, void * user_data);
@function
def llama_log_set(log_callback: Annotated[Any, ggml_log_callback], user_data: Address, /) -> None: ...
