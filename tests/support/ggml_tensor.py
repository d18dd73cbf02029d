"""A tensor of ggml's, as its callbacks hand it over."""

from __future__ import annotations

import ctypes

import numpy as np


class Tensor(ctypes.Structure):
    """ggml_tensor of the pinned ggml.h."""

    def rows(self) -> np.ndarray:
        """Its rows in place, in host memory."""
        assert self.type == 0, "f32"
        assert self.nb[0] == 4
        assert self.nb[1] == 4 * self.ne[0]
        data = ctypes.cast(self.data, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, (self.ne[1], self.ne[0]))

    def states(self) -> np.ndarray:
        """What a layer hands on, in place, in host memory: [states of a token, tokens, width]."""
        assert self.nb[2] == self.nb[1] * self.ne[1]
        rows = self.rows()
        return np.ctypeslib.as_array(rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), (self.ne[2], *rows.shape))

    def ints(self) -> np.ndarray:
        """Its values in place, in host memory."""
        assert self.type == 26, "i32"
        data = ctypes.cast(self.data, ctypes.POINTER(ctypes.c_int32))
        return np.ctypeslib.as_array(data, (self.ne[0] * self.ne[1],))


Tensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
)
