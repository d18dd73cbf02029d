"""A statement of what pruning computes that knows no stages: stock llama.cpp, whose tensors are changed while it runs.

Tokens that leave at a layer are masked from there on. Frozen ones get back, after each layer, the state they had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback

from tests.support.ggml_tensor import Tensor


class Masking:
    """For one prompt in an empty context of one sequence: tokens and cells have the same numbers.

    `gone` maps a layer to the tokens not seen from it on, `frozen` to those whose states stay as they enter it.
    """

    def __init__(self, gone: Mapping[int, Sequence[int]], frozen: Mapping[int, Sequence[int]]):
        self.gone, self.frozen = gone, frozen
        self.first = self.count = 0
        self.kept: dict[int, np.ndarray] = {}
        self.callback = ggml_backend_sched_eval_callback(self._on_tensor)

    def begin(self, count: int) -> None:
        """A batch of so many tokens comes."""
        self.first += self.count
        self.count = count

    def _on_tensor(self, pointer: int, ask: bool, _user: int | None) -> bool:
        tensor = Tensor.from_address(pointer)
        name, _, layer = tensor.name.decode().rpartition("-")
        if not layer.isdecimal():  # a view of one
            return False
        if name in ("l_out", "deepstack_out", "attn_norm_in"):  # the last as Step 3.5 calls what enters the next layer
            if not ask and tensor.ne[1] == self.count:
                self._freeze(tensor.states(), int(layer) - (name == "attn_norm_in"))
            return True
        # asked about once what comes before its layer is done
        if ask and name == "kq_soft_max":
            mask = tensor.src[1].contents.rows()  # of all layers, or of those with a window
            for since, tokens in self.gone.items():
                if int(layer) >= since:
                    mask[:, tokens] = -np.inf
        return False

    def _freeze(self, states: np.ndarray, layer: int) -> None:
        for since, tokens in self.frozen.items():
            rows = [token - self.first for token in tokens if 0 <= token - self.first < self.count]
            if layer == since - 1:
                self.kept[since] = states[:, rows].copy()
            elif layer >= since:
                states[:, rows] = self.kept[since]
