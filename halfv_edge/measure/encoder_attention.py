"""How much attention each visual token of a picture receives inside the encoder, for selectors that go by it."""

from __future__ import annotations

import ctypes

import numpy as np
from halfv_cpp import ggml_h
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback

from halfv_edge.engine.images import Picture
from halfv_edge.engine.runtime import Runtime
from halfv_edge.errors import HalfVError
from halfv_edge.gguf import encoder_keys
from halfv_edge.gguf.read import read_metadata
from halfv_edge.measure.arrays import Floats
from halfv_edge.profile.profile import WHOLE_INTAKE

FLOAT = ctypes.sizeof(ctypes.c_float)
USUAL_WINDOW = 112  # pixels, where llama.cpp is not told


class EncoderAttention:
    """A model's encoder once more, as llama.cpp computes it, whose last layer is watched. Close it before the model."""

    def __init__(self, runtime: Runtime):
        metadata = read_metadata(runtime.encoder.path)
        if encoder_keys.projector(metadata) not in encoder_keys.PATCHWISE:
            raise HalfVError(f"What {runtime.encoder.path.name} looks at is not known: eval asks encoders of Qwen-VL.")
        values = {name: metadata.value(f"clip.vision.{name}") for name in ("block_count", "patch_size", "window_size")}
        self.n_head = int(metadata.value("clip.vision.attention.head_count") or 1)
        self.window = None  # in tokens, along a side
        if metadata.value("clip.vision.n_wa_pattern"):
            self.window = int(values["window_size"] or USUAL_WINDOW) // int(values["patch_size"]) // encoder_keys.MERGE
        last = int(values["block_count"]) - 1
        self._wanted = {f"{name}_rope-{last}".encode(): name for name in ("Qcur", "Kcur")}
        self._seen: dict[str, Floats] = {}
        self._callback = ggml_backend_sched_eval_callback(self._on_tensor)
        self.encoder = runtime.load_encoder(
            image_max_tokens=runtime.options.image_max_tokens, intake=WHOLE_INTAKE, weights="off",
            on_tensor=self._callback,
        )  # fmt: skip
        self.encoder.cache_bytes = 0  # what is remembered is not seen again
        self._last: tuple[str, Floats] | None = None

    def close(self) -> None:
        self.encoder.close()

    def received(self, picture: Picture) -> Floats:
        """[tokens of the whole picture], row by row: the mean over heads and patches that look, in the last layer."""
        encoded = self.encoder.tokens(picture)
        if self._last is None or self._last[0] != encoded.digest:
            self.encoder.encode(encoded)
            columns, rows = encoded.chunks[0].grid(is_mrope=True)
            self._last = encoded.digest, self._by_token()[np.argsort(self._order(columns, rows))]
        return self._last[1]

    def _by_token(self) -> Floats:
        """In the order of the encoder's tokens."""
        query, key = (self._seen[name] for name in ("Qcur", "Kcur"))
        logits = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(query.shape[2])
        weights = np.exp(logits - logits.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        found: Floats = weights.mean(axis=(0, 1)).reshape(-1, encoder_keys.MERGE**2).mean(axis=1)
        return found

    def _order(self, columns: int, rows: int) -> list[int]:
        """The encoder takes tokens window by window."""
        side = self.window or max(columns, rows)
        places = [(y, x) for y in range(rows) for x in range(columns)]
        places.sort(key=lambda place: (place[0] // side, place[1] // side))
        return [y * columns + x for y, x in places]

    def _on_tensor(self, tensor: int, ask: bool, _user: object) -> bool:
        name = self._wanted.get(ggml_h.ggml_get_name(tensor))
        if name and not ask:
            data = ggml_h.ggml_get_data_f32(tensor)
            n_rows = ggml_h.ggml_nrows(tensor)  # a head of a patch each
            values = np.ctypeslib.as_array(data, (n_rows, ggml_h.ggml_nbytes(tensor) // n_rows // FLOAT))
            self._seen[name] = values.astype(np.float64).reshape(-1, self.n_head, values.shape[1])
        return name is not None
