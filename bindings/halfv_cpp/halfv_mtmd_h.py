"""halfv-mtmd.h, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"

from ctypes import CFUNCTYPE, c_float, c_void_p
from typing import Annotated, Any

from halfv_cpp.c_types import Address, Float, Handle, Int32, Int32s, MaybeHandle, Size, functions_of

function = functions_of("mtmd")


# MTMD_API void halfv_begin_chunk(struct llama_context * ctx, const mtmd_input_chunk * chunk);
@function
def halfv_begin_chunk(ctx: MaybeHandle, chunk: Handle, /) -> None:
    """halfv_begin_media with what the chunk is."""


# MTMD_API size_t halfv_picture_rows(const mtmd_image_tokens * picture);
@function
def halfv_picture_rows(picture: Handle, /) -> Size:
    """Rows that the encoder and its projector give, before any choice among them."""


# MTMD_API size_t halfv_picture_full_tokens(const mtmd_image_tokens * picture);
@function
def halfv_picture_full_tokens(picture: Handle, /) -> Size:
    """Tokens that it would have become in its own size, where it was made smaller; else 0."""


# MTMD_API int32_t halfv_picture_places(const mtmd_image_tokens * picture, int32_t * out, int32_t cap);
@function
def halfv_picture_places(picture: Handle, out: Int32s, cap: Int32, /) -> Int32:
    """Where in the picture's grid, row by row, each of them is; how many there are."""


# MTMD_API int32_t halfv_picture_groups(const mtmd_image_tokens * picture, int32_t * n_seen);
@function
def halfv_picture_groups(picture: Handle, n_seen: Int32s, /) -> Int32:
    """Groups of patches of which the encoder's later layers see only some, and how many; 0 and 0 where they see all."""


# MTMD_API int32_t halfv_last_cut(const mtmd_context * ctx);
@function
def halfv_last_cut(ctx: Handle, /) -> Int32:
    """The last layer that halfv.encoder.layer can name for this encoder; 0: it always runs whole."""


# MTMD_API halfv_frames * halfv_frames_init(void);
@function
def halfv_frames_init() -> MaybeHandle:
    """What the pictures of a message showed so far; None: out of memory."""


# MTMD_API void halfv_frames_free(halfv_frames * frames);
@function
def halfv_frames_free(frames: Handle, /) -> None: ...


# MTMD_API void halfv_follow_frames(halfv_frames * frames);
@function
def halfv_follow_frames(frames: MaybeHandle, /) -> None:
    """Texts that this thread tokenizes from now on go on with these frames; None: each has its own."""


# #define HALFV_ROWS_UNKNOWN -1
HALFV_ROWS_UNKNOWN = -1


# MTMD_API int32_t halfv_picture_kept(const mtmd_image_tokens * picture, int32_t * out, int32_t cap);
@function
def halfv_picture_kept(picture: Handle, out: Int32s, cap: Int32, /) -> Int32:
    """Which of them go on; how many there are, or HALFV_ROWS_UNKNOWN before the picture has been encoded."""


# MTMD_API int32_t halfv_picture_set_kept(const mtmd_image_tokens * picture, const int32_t * rows, int32_t n);
@function
def halfv_picture_set_kept(picture: Handle, rows: Int32s, n: Int32, /) -> Int32:
    """For a program that keeps embeddings, and with them the rows that they are of."""


# typedef void (*halfv_encode_callback)(float share, void * user_data);
halfv_encode_callback = CFUNCTYPE(None, c_float, c_void_p)


# MTMD_API void halfv_watch_encoding(halfv_encode_callback callback, void * user_data, float every_sec);
@function
def halfv_watch_encoding(
    callback: Annotated[Any, halfv_encode_callback], user_data: Address, every_sec: Float, /
) -> None:
    """Watch what this thread encodes; a callback of None ends that."""
