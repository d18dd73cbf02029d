"""ggml-backend.h: what is used of it, in the header's order, the C declaration above each name."""

# mypy: disable-error-code="empty-body"

from ctypes import CFUNCTYPE, c_bool, c_void_p

from halfv_cpp.c_types import Handle, Int, Size, Sizes, Text, functions_of

function = functions_of("ggml")


# GGML_API const char * ggml_backend_dev_name(ggml_backend_dev_t device);
@function
def ggml_backend_dev_name(device: Handle, /) -> Text: ...


# GGML_API const char * ggml_backend_dev_description(ggml_backend_dev_t device);
@function
def ggml_backend_dev_description(device: Handle, /) -> Text: ...


# GGML_API void ggml_backend_dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total);
@function
def ggml_backend_dev_memory(device: Handle, free: Sizes, total: Sizes, /) -> None: ...


# GGML_API enum ggml_backend_dev_type ggml_backend_dev_type(ggml_backend_dev_t device);
@function
def ggml_backend_dev_type(device: Handle, /) -> Int: ...


# GGML_API const char * ggml_backend_reg_name(ggml_backend_reg_t reg);
@function
def ggml_backend_reg_name(reg: Handle, /) -> Text: ...


# GGML_API size_t ggml_backend_reg_count(void);
@function
def ggml_backend_reg_count() -> Size: ...


# GGML_API ggml_backend_reg_t ggml_backend_reg_get(size_t index);
@function
def ggml_backend_reg_get(index: Size, /) -> Handle: ...


# GGML_API size_t ggml_backend_dev_count(void);
@function
def ggml_backend_dev_count() -> Size: ...


# GGML_API ggml_backend_dev_t ggml_backend_dev_get(size_t index);
@function
def ggml_backend_dev_get(index: Size, /) -> Handle: ...


# typedef bool (*ggml_backend_sched_eval_callback)(struct ggml_tensor * t, bool ask, void * user_data);
ggml_backend_sched_eval_callback = CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
