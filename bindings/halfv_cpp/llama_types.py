"""llama.h: the types that are used of it, in the header's order, the C declaration above each name."""

from ctypes import CFUNCTYPE, POINTER, Structure, c_bool, c_float, c_int32, c_void_p
from typing import Annotated, Any

from halfv_cpp.c_types import (
    Address,
    Bool,
    Float,
    FloatField,
    Int,
    Int8Field,
    Int32,
    Int32Field,
    Int64,
    Size,
    UInt32,
    structure,
)
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback
from halfv_cpp.ggml_h import ggml_abort_callback

# #define LLAMA_DEFAULT_SEED 0xFFFFFFFF
LLAMA_DEFAULT_SEED = 0xFFFFFFFF

# enum llama_vocab_type {
#     LLAMA_VOCAB_TYPE_NONE   = 0,
#     LLAMA_VOCAB_TYPE_SPM    = 1,
#     LLAMA_VOCAB_TYPE_BPE    = 2,
#     LLAMA_VOCAB_TYPE_WPM    = 3,
#     LLAMA_VOCAB_TYPE_UGM    = 4,
#     LLAMA_VOCAB_TYPE_RWKV   = 5,
#     LLAMA_VOCAB_TYPE_PLAMO2 = 6,
#     LLAMA_VOCAB_TYPE_TEST   = 7,
# };
LLAMA_VOCAB_TYPE_NONE = 0
LLAMA_VOCAB_TYPE_SPM = 1
LLAMA_VOCAB_TYPE_BPE = 2
LLAMA_VOCAB_TYPE_WPM = 3
LLAMA_VOCAB_TYPE_UGM = 4
LLAMA_VOCAB_TYPE_RWKV = 5
LLAMA_VOCAB_TYPE_PLAMO2 = 6
LLAMA_VOCAB_TYPE_TEST = 7

# enum llama_rope_type {
#     LLAMA_ROPE_TYPE_NONE   = -1,
#     LLAMA_ROPE_TYPE_NORM   = 0,
#     LLAMA_ROPE_TYPE_NEOX   = GGML_ROPE_TYPE_NEOX,
#     LLAMA_ROPE_TYPE_MROPE  = GGML_ROPE_TYPE_MROPE,
#     LLAMA_ROPE_TYPE_IMROPE = GGML_ROPE_TYPE_IMROPE,
#     LLAMA_ROPE_TYPE_VISION = GGML_ROPE_TYPE_VISION,
# };
LLAMA_ROPE_TYPE_NONE = -1
LLAMA_ROPE_TYPE_NORM = 0
LLAMA_ROPE_TYPE_NEOX = 2
LLAMA_ROPE_TYPE_MROPE = 8
LLAMA_ROPE_TYPE_IMROPE = 40
LLAMA_ROPE_TYPE_VISION = 24

# enum llama_ftype, of which: what llama_model_quantize makes
LLAMA_FTYPE_MOSTLY_Q4_0 = 2
LLAMA_FTYPE_MOSTLY_Q4_1 = 3
LLAMA_FTYPE_MOSTLY_Q5_0 = 8
LLAMA_FTYPE_MOSTLY_Q5_1 = 9
LLAMA_FTYPE_MOSTLY_Q2_K = 10
LLAMA_FTYPE_MOSTLY_Q3_K_S = 11
LLAMA_FTYPE_MOSTLY_Q3_K_M = 12
LLAMA_FTYPE_MOSTLY_Q3_K_L = 13
LLAMA_FTYPE_MOSTLY_Q4_K_S = 14
LLAMA_FTYPE_MOSTLY_Q4_K_M = 15
LLAMA_FTYPE_MOSTLY_Q5_K_S = 16
LLAMA_FTYPE_MOSTLY_Q5_K_M = 17
LLAMA_FTYPE_MOSTLY_Q6_K = 18
LLAMA_FTYPE_MOSTLY_IQ4_NL = 25
LLAMA_FTYPE_MOSTLY_IQ4_XS = 30

# enum llama_flash_attn_type {
#     LLAMA_FLASH_ATTN_TYPE_AUTO     = -1,
#     LLAMA_FLASH_ATTN_TYPE_DISABLED = 0,
#     LLAMA_FLASH_ATTN_TYPE_ENABLED  = 1,
# };
LLAMA_FLASH_ATTN_TYPE_AUTO = -1
LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
LLAMA_FLASH_ATTN_TYPE_ENABLED = 1

# enum llama_load_mode {
#     LLAMA_LOAD_MODE_AUTO       = -1,
#     LLAMA_LOAD_MODE_NONE       =  0,
#     LLAMA_LOAD_MODE_MMAP       =  1,
#     LLAMA_LOAD_MODE_MLOCK      =  2,
#     LLAMA_LOAD_MODE_MMAP_MLOCK =  3,
#     LLAMA_LOAD_MODE_DIRECT_IO  =  4,
# };
LLAMA_LOAD_MODE_AUTO = -1
LLAMA_LOAD_MODE_NONE = 0
LLAMA_LOAD_MODE_MMAP = 1
LLAMA_LOAD_MODE_MLOCK = 2
LLAMA_LOAD_MODE_MMAP_MLOCK = 3
LLAMA_LOAD_MODE_DIRECT_IO = 4


# typedef struct llama_token_data {
#     llama_token id;
#     float logit;
#     float p;
# } llama_token_data;
@structure
class llama_token_data(Structure):  # noqa: N801
    id: Int32
    logit: Float
    p: Float


# typedef struct llama_token_data_array {
#     llama_token_data * data;
#     size_t size;
#     int64_t selected;
#     bool sorted;
# } llama_token_data_array;
@structure
class llama_token_data_array(Structure):  # noqa: N801
    data: Annotated[Any, POINTER(llama_token_data)]
    size: Size
    selected: Int64
    sorted: Bool


# typedef bool (*llama_progress_callback)(float progress, void * user_data);
llama_progress_callback = CFUNCTYPE(c_bool, c_float, c_void_p)


# typedef struct llama_batch {
#     int32_t n_tokens;
#     llama_token  *  token;
#     float        *  embd;
#     llama_pos    *  pos;
#     int32_t      *  n_seq_id;
#     llama_seq_id ** seq_id;
#     int8_t       *  logits;
# } llama_batch;
@structure
class llama_batch(Structure):  # noqa: N801
    n_tokens: Int32
    token: Int32Field
    embd: FloatField
    pos: Int32Field
    n_seq_id: Int32Field
    seq_id: Annotated[Any, POINTER(POINTER(c_int32))]
    logits: Int8Field


# struct llama_model_params {
#     ggml_backend_dev_t * devices;
#     const struct llama_model_tensor_buft_override * tensor_buft_overrides;
#     int32_t n_gpu_layers;
#     enum llama_split_mode split_mode;
#     enum llama_load_mode  load_mode;
#     enum llama_lazy_mode lazy_mode;
#     int32_t main_gpu;
#     const float * tensor_split;
#     llama_progress_callback progress_callback;
#     void * progress_callback_user_data;
#     const struct llama_model_kv_override * kv_overrides;
#     bool vocab_only;
#     bool check_tensors;
#     bool use_extra_bufts;
#     bool no_host;
#     bool no_alloc;
#     bool load_mtp;
# };
@structure
class llama_model_params(Structure):  # noqa: N801
    devices: Address
    tensor_buft_overrides: Address
    n_gpu_layers: Int32
    split_mode: Int
    load_mode: Int
    lazy_mode: Int
    main_gpu: Int32
    tensor_split: FloatField
    progress_callback: Annotated[Any, llama_progress_callback]
    progress_callback_user_data: Address
    kv_overrides: Address
    vocab_only: Bool
    check_tensors: Bool
    use_extra_bufts: Bool
    no_host: Bool
    no_alloc: Bool
    load_mtp: Bool


# struct llama_context_params {
#     uint32_t n_ctx;
#     uint32_t n_batch;
#     uint32_t n_ubatch;
#     uint32_t n_seq_max;
#     uint32_t n_rs_seq;
#     uint32_t n_outputs_max;
#     uint32_t n_outputs_max_per_seq;
#     int32_t  n_threads;
#     int32_t  n_threads_batch;
#     enum llama_context_type      ctx_type;
#     enum llama_rope_scaling_type rope_scaling_type;
#     enum llama_pooling_type      pooling_type;
#     enum llama_attention_type    attention_type;
#     enum llama_flash_attn_type   flash_attn_type;
#     float    rope_freq_base;
#     float    rope_freq_scale;
#     float    yarn_ext_factor;
#     float    yarn_attn_factor;
#     float    yarn_beta_fast;
#     float    yarn_beta_slow;
#     uint32_t yarn_orig_ctx;
#     float    defrag_thold;
#     ggml_backend_sched_eval_callback cb_eval;
#     void * cb_eval_user_data;
#     enum ggml_type type_k;
#     enum ggml_type type_v;
#     ggml_abort_callback abort_callback;
#     void *              abort_callback_data;
#     bool embeddings;
#     bool offload_kqv;
#     bool no_perf;
#     bool op_offload;
#     bool swa_full;
#     bool kv_unified;
#     struct llama_sampler_seq_config * samplers;
#     size_t                            n_samplers;
#     struct llama_context * ctx_other;
# };
@structure
class llama_context_params(Structure):  # noqa: N801
    n_ctx: UInt32
    n_batch: UInt32
    n_ubatch: UInt32
    n_seq_max: UInt32
    n_rs_seq: UInt32
    n_outputs_max: UInt32
    n_outputs_max_per_seq: UInt32
    n_threads: Int32
    n_threads_batch: Int32
    ctx_type: Int
    rope_scaling_type: Int
    pooling_type: Int
    attention_type: Int
    flash_attn_type: Int
    rope_freq_base: Float
    rope_freq_scale: Float
    yarn_ext_factor: Float
    yarn_attn_factor: Float
    yarn_beta_fast: Float
    yarn_beta_slow: Float
    yarn_orig_ctx: UInt32
    defrag_thold: Float
    cb_eval: Annotated[Any, ggml_backend_sched_eval_callback]
    cb_eval_user_data: Address
    type_k: Int
    type_v: Int
    abort_callback: Annotated[Any, ggml_abort_callback]
    abort_callback_data: Address
    embeddings: Bool
    offload_kqv: Bool
    no_perf: Bool
    op_offload: Bool
    swa_full: Bool
    kv_unified: Bool
    samplers: Address
    n_samplers: Size
    ctx_other: Address


# typedef struct llama_model_quantize_params {
#     int32_t nthread;
#     enum llama_ftype ftype;
#     enum ggml_type output_tensor_type;
#     enum ggml_type token_embedding_type;
#     bool allow_requantize;
#     bool quantize_output_tensor;
#     bool only_copy;
#     bool pure;
#     bool keep_split;
#     bool dry_run;
#     const struct llama_model_imatrix_data * imatrix;
#     const struct llama_model_kv_override * kv_overrides;
#     const struct llama_model_tensor_override * tt_overrides;
#     const int32_t * prune_layers;
#     size_t max_buf_size;
# } llama_model_quantize_params;
@structure
class llama_model_quantize_params(Structure):  # noqa: N801
    nthread: Int32
    ftype: Int
    output_tensor_type: Int
    token_embedding_type: Int
    allow_requantize: Bool
    quantize_output_tensor: Bool
    only_copy: Bool
    pure: Bool
    keep_split: Bool
    dry_run: Bool
    imatrix: Address
    kv_overrides: Address
    tt_overrides: Address
    prune_layers: Int32Field
    max_buf_size: Size


# typedef struct llama_sampler_chain_params {
#     bool no_perf;
# } llama_sampler_chain_params;
@structure
class llama_sampler_chain_params(Structure):  # noqa: N801
    no_perf: Bool
