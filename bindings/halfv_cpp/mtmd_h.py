"""mtmd.h: what is used of it, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"

from ctypes import CFUNCTYPE, POINTER, Structure, c_bool, c_float, c_void_p
from typing import TYPE_CHECKING, Annotated, Any

from halfv_cpp.c_types import (
    Address,
    Bool,
    Buffer,
    FloatPointer,
    Handle,
    Handles,
    Int,
    Int32,
    Int32Pointer,
    MaybeHandle,
    MaybeText,
    Size,
    Sizes,
    Text,
    UInt8s,
    UInt32,
    functions_of,
    structure,
)
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback
from halfv_cpp.ggml_h import ggml_log_callback

if TYPE_CHECKING:
    from halfv_cpp.c_types import To

function = functions_of("mtmd")

# enum mtmd_input_chunk_type {
#     MTMD_INPUT_CHUNK_TYPE_TEXT,
#     MTMD_INPUT_CHUNK_TYPE_IMAGE,
#     MTMD_INPUT_CHUNK_TYPE_AUDIO,
#     MTMD_INPUT_CHUNK_TYPE_COUNT, // for validation
# };
MTMD_INPUT_CHUNK_TYPE_TEXT = 0
MTMD_INPUT_CHUNK_TYPE_IMAGE = 1
MTMD_INPUT_CHUNK_TYPE_AUDIO = 2
MTMD_INPUT_CHUNK_TYPE_COUNT = 3


# struct mtmd_input_text {
#     const char * text;
#     size_t text_len;
#     bool add_special;
#     bool parse_special;
# };
@structure
class mtmd_input_text(Structure):  # noqa: N801
    text: Text
    text_len: Size
    add_special: Bool
    parse_special: Bool


# typedef bool (*mtmd_progress_callback)(float progress, void * user_data);
mtmd_progress_callback = CFUNCTYPE(c_bool, c_float, c_void_p)


# struct mtmd_context_params {
#     bool use_gpu;
#     ggml_backend_dev_t device;
#     bool print_timings;
#     int n_threads;
#     const char * image_marker;
#     const char * media_marker;
#     enum llama_flash_attn_type flash_attn_type;
#     bool warmup;
#     int image_min_tokens;
#     int image_max_tokens;
#     ggml_backend_sched_eval_callback cb_eval;
#     void * cb_eval_user_data;
#     int32_t batch_max_tokens;
#     mtmd_progress_callback progress_callback;
#     void * progress_callback_user_data;
# };
@structure
class mtmd_context_params(Structure):  # noqa: N801
    use_gpu: Bool
    device: Address
    print_timings: Bool
    n_threads: Int
    image_marker: MaybeText
    media_marker: MaybeText
    flash_attn_type: Int
    warmup: Bool
    image_min_tokens: Int
    image_max_tokens: Int
    cb_eval: Annotated[Any, ggml_backend_sched_eval_callback]
    cb_eval_user_data: Address
    batch_max_tokens: Int32
    progress_callback: Annotated[Any, mtmd_progress_callback]
    progress_callback_user_data: Address


# MTMD_API const char * mtmd_default_marker(void);
@function
def mtmd_default_marker() -> Text: ...


# MTMD_API struct mtmd_context_params mtmd_context_params_default(void);
@function
def mtmd_context_params_default() -> mtmd_context_params: ...


# MTMD_API mtmd_context * mtmd_init_from_file(const char * mmproj_fname, const struct llama_model * text_model,
#                                             const struct mtmd_context_params ctx_params);
@function
def mtmd_init_from_file(
    mmproj_fname: Text, text_model: MaybeHandle, ctx_params: mtmd_context_params, /
) -> MaybeHandle: ...


# MTMD_API void mtmd_free(mtmd_context * ctx);
@function
def mtmd_free(ctx: Handle, /) -> None: ...


# MTMD_API bool mtmd_decode_use_non_causal(const mtmd_context * ctx, const mtmd_input_chunk * chunk);
@function
def mtmd_decode_use_non_causal(ctx: Handle, chunk: MaybeHandle, /) -> Bool: ...


# MTMD_API bool mtmd_decode_use_mrope(const mtmd_context * ctx);
@function
def mtmd_decode_use_mrope(ctx: Handle, /) -> Bool: ...


# MTMD_API bool mtmd_support_vision(const mtmd_context * ctx);
@function
def mtmd_support_vision(ctx: Handle, /) -> Bool: ...


# MTMD_API const char * mtmd_get_marker(const mtmd_context * ctx);
@function
def mtmd_get_marker(ctx: Handle, /) -> Text: ...


# MTMD_API mtmd_bitmap * mtmd_bitmap_init(uint32_t nx, uint32_t ny, const unsigned char * data);
@function
def mtmd_bitmap_init(nx: UInt32, ny: UInt32, data: UInt8s, /) -> Handle: ...


# MTMD_API void mtmd_bitmap_free(mtmd_bitmap * bitmap);
@function
def mtmd_bitmap_free(bitmap: Handle, /) -> None: ...


# MTMD_API void mtmd_bitmap_set_id(mtmd_bitmap * bitmap, const char * id);
@function
def mtmd_bitmap_set_id(bitmap: Handle, id: MaybeText, /) -> None: ...


# MTMD_API void mtmd_bitmap_set_mergeable(mtmd_bitmap * bitmap, bool mergeable);
@function
def mtmd_bitmap_set_mergeable(bitmap: Handle, mergeable: Bool, /) -> None: ...


# MTMD_API mtmd_input_chunks * mtmd_input_chunks_init(void);
@function
def mtmd_input_chunks_init() -> Handle: ...


# MTMD_API size_t mtmd_input_chunks_size(const mtmd_input_chunks * chunks);
@function
def mtmd_input_chunks_size(chunks: Handle, /) -> Size: ...


# MTMD_API const mtmd_input_chunk * mtmd_input_chunks_get(const mtmd_input_chunks * chunks, size_t idx);
@function
def mtmd_input_chunks_get(chunks: Handle, idx: Size, /) -> Handle: ...


# MTMD_API void mtmd_input_chunks_free(mtmd_input_chunks * chunks);
@function
def mtmd_input_chunks_free(chunks: Handle, /) -> None: ...


# MTMD_API enum mtmd_input_chunk_type mtmd_input_chunk_get_type(const mtmd_input_chunk * chunk);
@function
def mtmd_input_chunk_get_type(chunk: Handle, /) -> Int: ...


# MTMD_API const llama_token * mtmd_input_chunk_get_tokens_text(const mtmd_input_chunk * chunk,
#                                                               size_t * n_tokens_output);
@function
def mtmd_input_chunk_get_tokens_text(chunk: Handle, n_tokens_output: Sizes, /) -> Int32Pointer: ...


# MTMD_API const mtmd_image_tokens * mtmd_input_chunk_get_tokens_image(const mtmd_input_chunk * chunk);
@function
def mtmd_input_chunk_get_tokens_image(chunk: Handle, /) -> MaybeHandle: ...


# MTMD_API size_t mtmd_input_chunk_get_n_tokens(const mtmd_input_chunk * chunk);
@function
def mtmd_input_chunk_get_n_tokens(chunk: Handle, /) -> Size: ...


# MTMD_API llama_pos mtmd_input_chunk_get_n_pos(const mtmd_input_chunk * chunk);
@function
def mtmd_input_chunk_get_n_pos(chunk: Handle, /) -> Int32: ...


# MTMD_API mtmd_input_chunk * mtmd_input_chunk_copy(const mtmd_input_chunk * chunk);
@function
def mtmd_input_chunk_copy(chunk: Handle, /) -> Handle: ...


# MTMD_API void mtmd_input_chunk_free(mtmd_input_chunk * chunk);
@function
def mtmd_input_chunk_free(chunk: Handle, /) -> None: ...


# MTMD_API mtmd_input_chunk * mtmd_input_chunk_get_placeholder(const mtmd_input_chunk * chunk);
@function
def mtmd_input_chunk_get_placeholder(chunk: Handle, /) -> Handle: ...


# MTMD_API int32_t mtmd_input_chunk_save(const mtmd_input_chunk * chunk, char * out_buf, size_t out_len,
#                                        size_t * expected_out_len);
@function
def mtmd_input_chunk_save(chunk: Handle, out_buf: Buffer, out_len: Size, expected_out_len: Sizes, /) -> Int32: ...


# MTMD_API mtmd_input_chunk * mtmd_input_chunk_load(const char * buf, size_t len);
@function
def mtmd_input_chunk_load(buf: Text, len: Size, /) -> MaybeHandle: ...


# MTMD_API const char * mtmd_image_tokens_get_id(const mtmd_image_tokens * image_tokens);
@function
def mtmd_image_tokens_get_id(image_tokens: Handle, /) -> Text: ...


# DEPRECATED(MTMD_API size_t mtmd_image_tokens_get_nx(const mtmd_image_tokens * image_tokens),
#            "use mtmd_image_tokens_get_decoder_pos() instead");
@function
def mtmd_image_tokens_get_nx(image_tokens: Handle, /) -> Size: ...


# DEPRECATED(MTMD_API size_t mtmd_image_tokens_get_ny(const mtmd_image_tokens * image_tokens),
#            "use mtmd_image_tokens_get_decoder_pos() instead");
@function
def mtmd_image_tokens_get_ny(image_tokens: Handle, /) -> Size: ...


# struct mtmd_decoder_pos {
#     uint32_t t;
#     uint32_t x;
#     uint32_t y;
#     uint32_t z;
# };
@structure
class mtmd_decoder_pos(Structure):  # noqa: N801
    t: UInt32
    x: UInt32
    y: UInt32
    z: UInt32


# MTMD_API int32_t mtmd_tokenize(const mtmd_context * ctx, mtmd_input_chunks * output, const mtmd_input_text * text,
#                                const mtmd_bitmap * const * bitmaps, size_t n_bitmaps);
@function
def mtmd_tokenize(
    ctx: Handle,
    output: Handle,
    text: Annotated["To[mtmd_input_text]", POINTER(mtmd_input_text)],
    bitmaps: Handles,
    n_bitmaps: Size,
    /,
) -> Int32: ...


# MTMD_API int32_t mtmd_encode_chunk(mtmd_context * ctx, const mtmd_input_chunk * chunk);
@function
def mtmd_encode_chunk(ctx: Handle, chunk: Handle, /) -> Int32: ...


# MTMD_API float * mtmd_get_output_embd(mtmd_context * ctx);
@function
def mtmd_get_output_embd(ctx: Handle, /) -> FloatPointer: ...


# MTMD_API mtmd_batch * mtmd_batch_init(mtmd_context * ctx);
@function
def mtmd_batch_init(ctx: Handle, /) -> Handle: ...


# MTMD_API void mtmd_batch_free(mtmd_batch * batch);
@function
def mtmd_batch_free(batch: Handle, /) -> None: ...


# MTMD_API int32_t mtmd_batch_add_chunk(mtmd_batch * batch, const mtmd_input_chunk * chunk);
@function
def mtmd_batch_add_chunk(batch: Handle, chunk: Handle, /) -> Int32: ...


# MTMD_API int32_t mtmd_batch_encode(mtmd_batch * batch);
@function
def mtmd_batch_encode(batch: Handle, /) -> Int32: ...


# MTMD_API float * mtmd_batch_get_output_embd(mtmd_batch * batch, const mtmd_input_chunk * chunk);
@function
def mtmd_batch_get_output_embd(batch: Handle, chunk: Handle, /) -> FloatPointer: ...


# MTMD_API void mtmd_log_set(ggml_log_callback log_callback, void * user_data);
@function
def mtmd_log_set(log_callback: Annotated[Any, ggml_log_callback], user_data: Address, /) -> None: ...
