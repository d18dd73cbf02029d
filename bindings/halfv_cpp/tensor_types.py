"""ggml's number formats, by their names in lower case."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorType:
    """One format: its numbers in llama.cpp's enums, and how many bytes a block of values takes."""

    ggml_type: int  # enum ggml_type, of a tensor
    ftype: int | None  # enum llama_ftype, of a file that has this nearly throughout; None where there is none
    block: int
    block_bytes: int

    def row_bytes(self, n_values: int) -> int:
        """Of whole blocks."""
        return n_values // self.block * self.block_bytes


TENSOR_TYPES = {
    "f32": TensorType(0, 0, 1, 4),
    "f16": TensorType(1, 1, 1, 2),
    "q4_0": TensorType(2, 2, 32, 18),
    "q4_1": TensorType(3, 3, 32, 20),
    "q5_0": TensorType(6, 8, 32, 22),
    "q5_1": TensorType(7, 9, 32, 24),
    "q8_0": TensorType(8, 7, 32, 34),
    "q8_1": TensorType(9, None, 32, 36),
    "q2_k": TensorType(10, 10, 256, 84),
    "q3_k": TensorType(11, None, 256, 110),
    "q4_k": TensorType(12, None, 256, 144),
    "q5_k": TensorType(13, None, 256, 176),
    "q6_k": TensorType(14, 18, 256, 210),
    "q8_k": TensorType(15, None, 256, 292),
    "iq2_xxs": TensorType(16, 19, 256, 66),
    "iq2_xs": TensorType(17, 20, 256, 74),
    "iq3_xxs": TensorType(18, 23, 256, 98),
    "iq1_s": TensorType(19, 24, 256, 50),
    "iq4_nl": TensorType(20, 25, 32, 18),
    "iq3_s": TensorType(21, 26, 256, 110),
    "iq2_s": TensorType(22, 28, 256, 82),
    "iq4_xs": TensorType(23, 30, 256, 136),
    "i8": TensorType(24, None, 1, 1),
    "i16": TensorType(25, None, 1, 2),
    "i32": TensorType(26, None, 1, 4),
    "i64": TensorType(27, None, 1, 8),
    "f64": TensorType(28, None, 1, 8),
    "iq1_m": TensorType(29, 31, 256, 56),
    "bf16": TensorType(30, 32, 1, 2),
    "tq1_0": TensorType(34, 36, 256, 54),
    "tq2_0": TensorType(35, 37, 256, 66),
    "mxfp4": TensorType(39, 38, 32, 17),
    "nvfp4": TensorType(40, 39, 64, 36),
    "q1_0": TensorType(41, 40, 128, 18),
    "q2_0": TensorType(42, 41, 64, 18),
}
BY_NUMBER = {type_.ggml_type: type_ for type_ in TENSOR_TYPES.values()}
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")  # of the KV cache
