"""mtmd-helper.h: what is used of it, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"

from ctypes import CFUNCTYPE, POINTER, c_int32, c_void_p
from typing import TYPE_CHECKING, Annotated, Any

from halfv_cpp.c_types import Address, Bool, Floats, Handle, Int32, Int32s, functions_of
from halfv_cpp.ggml_h import ggml_log_callback
from halfv_cpp.mtmd_h import mtmd_decoder_pos

if TYPE_CHECKING:
    from halfv_cpp.c_types import To

function = functions_of("mtmd")


# MTMD_API void mtmd_helper_log_set(ggml_log_callback log_callback, void * user_data);
@function
def mtmd_helper_log_set(log_callback: Annotated[Any, ggml_log_callback], user_data: Address, /) -> None: ...


# MTMD_API void mtmd_helper_image_get_decoder_pos(const mtmd_image_tokens * image, llama_pos pos_0,
#                                                 struct mtmd_decoder_pos * out_pos);
@function
def mtmd_helper_image_get_decoder_pos(
    image: Handle, pos_0: Int32, out_pos: Annotated["To[mtmd_decoder_pos]", POINTER(mtmd_decoder_pos)], /
) -> None: ...


# MTMD_API int32_t mtmd_helper_eval_chunks(mtmd_context * ctx, struct llama_context * lctx,
#                                          const mtmd_input_chunks * chunks, llama_pos n_past, llama_seq_id seq_id,
#                                          int32_t n_batch, bool logits_last, llama_pos * new_n_past);
@function
def mtmd_helper_eval_chunks(
    ctx: Handle,
    lctx: Handle,
    chunks: Handle,
    n_past: Int32,
    seq_id: Int32,
    n_batch: Int32,
    logits_last: Bool,
    new_n_past: Int32s,
    /,
) -> Int32: ...


# typedef int32_t (*mtmd_helper_post_decode_callback)(const struct mtmd_helper_embd_batch * batch, void * user_data);
mtmd_helper_post_decode_callback = CFUNCTYPE(c_int32, c_void_p, c_void_p)


# MTMD_API int32_t mtmd_helper_decode_image_chunk(mtmd_context * ctx, struct llama_context * lctx,
#                                                 const mtmd_input_chunk * chunk, float * encoded_embd,
#                                                 llama_pos n_past, llama_seq_id seq_id, int32_t n_batch,
#                                                 llama_pos * new_n_past, mtmd_helper_post_decode_callback callback,
#                                                 void * user_data);
@function
def mtmd_helper_decode_image_chunk(
    ctx: Handle,
    lctx: Handle,
    chunk: Handle,
    encoded_embd: Floats,
    n_past: Int32,
    seq_id: Int32,
    n_batch: Int32,
    new_n_past: Int32s,
    callback: Annotated[Any, mtmd_helper_post_decode_callback],
    user_data: Address,
    /,
) -> Int32: ...
