"""ggml.h: what is used of it, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"

from ctypes import CFUNCTYPE, c_bool, c_char_p, c_int, c_void_p

from halfv_cpp.c_types import Address, Buffer, FloatPointer, Floats, Handle, Int, Int64, Size, Text, functions_of

function = functions_of("ggml-base")


# GGML_API void ggml_bf16_to_fp32_row(const ggml_bf16_t *, float *, int64_t);
@function
def ggml_bf16_to_fp32_row(bf16: Buffer, out: Floats, n: Int64, /) -> None: ...


# typedef bool (*ggml_abort_callback)(void * data);
ggml_abort_callback = CFUNCTYPE(c_bool, c_void_p)


# GGML_API int64_t ggml_nrows     (const struct ggml_tensor * tensor);
@function
def ggml_nrows(tensor: Handle, /) -> Int64: ...


# GGML_API size_t  ggml_nbytes    (const struct ggml_tensor * tensor);
@function
def ggml_nbytes(tensor: Handle, /) -> Size: ...


# GGML_API const char * ggml_op_desc(const struct ggml_tensor * t);
@function
def ggml_op_desc(t: Handle, /) -> Text: ...


# GGML_API float * ggml_get_data_f32(const struct ggml_tensor * tensor);
@function
def ggml_get_data_f32(tensor: Handle, /) -> FloatPointer: ...


# GGML_API const char *         ggml_get_name   (const struct ggml_tensor * tensor);
@function
def ggml_get_name(tensor: Handle, /) -> Text: ...


# GGML_API size_t ggml_quantize_chunk(enum ggml_type type, const float * src, void * dst, int64_t start,
#                                     int64_t nrows, int64_t n_per_row, const float * imatrix);
@function
def ggml_quantize_chunk(
    type: Int, src: Floats, dst: Address, start: Int64, nrows: Int64, n_per_row: Int64, imatrix: Floats, /
) -> Size: ...


# typedef void (*ggml_log_callback)(enum ggml_log_level level, const char * text, void * user_data);
ggml_log_callback = CFUNCTYPE(None, c_int, c_char_p, c_void_p)
