"""A statement of what dropping computes that knows no stages and no masks: stock llama.cpp, three times.

Each context is fed the tokens that reach its layers, and no others. Where its layers begin, the states are replaced by
those that the context before gave there. So whatever a layer is made of, it sees the tokens that are left, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from halfv_cpp import llama_h
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback

from halfv_edge.testing.client import Client
from tests.support.ggml_tensor import Tensor


class Leg:
    """Layers [first, last): takes states at their start, gives those at their end."""

    def __init__(self, path: Path, first: int, last: int):
        self.first, self.last = first, last
        self.count = 0
        self.taken = self.given = np.empty(0)
        self.seen = 0  # tokens of former batches
        self.positions = np.empty(0, np.int32)
        self.all_positions = np.empty(0, np.int32)
        self.callback = ggml_backend_sched_eval_callback(self._on_tensor)
        self.client = Client(path, n_ctx=256, on_tensor=self.callback)
        self.window = llama_h.llama_model_n_swa(self.client.model)  # of every layer that attends, or 0

    def feed(
        self, rows: Sequence[int] | np.ndarray, positions: np.ndarray, states: np.ndarray, output: bool
    ) -> np.ndarray:
        self.seen += self.count
        self.count, self.taken = len(rows), states
        self.positions = positions.astype(np.int32).ravel()
        self.all_positions = np.append(self.all_positions, self.positions[: self.count])
        if np.ndim(rows) == 2:
            self.client.image(np.asarray(rows))
        else:
            self.client.text(list(rows), logits_last=output and self.last < 0)
        return self.given

    def _on_tensor(self, pointer: int, ask: bool, _user: int | None) -> bool:
        tensor = Tensor.from_address(pointer)
        if ask and tensor.src[1] and tensor.src[1].contents.name == b"inp_pos":
            at = tensor.src[1].contents.ints()
            assert len(at) == len(self.positions)
            at[:] = self.positions  # batches have no gaps, but tokens keep their places
        if ask and self.window and tensor.name.startswith(b"kq_soft_max"):
            mask = tensor.src[1].contents.rows()
            for i in range(self.count):
                reach = self.positions[i] - self.all_positions[: self.seen + i + 1] < self.window
                mask[i, : self.seen + i + 1] = np.where(reach, 0, -np.inf)
        name, _, layer = tensor.name.decode().rpartition("-")
        if name not in ("l_out", "nemotron_h_block_out") or int(layer) not in (self.first - 1, self.last - 1):
            return False
        if not ask and tensor.ne[1] == self.count:
            if int(layer) == self.first - 1:
                tensor.rows()[:] = self.taken
            else:
                self.given = tensor.rows().copy()
        return True


class Relay:
    """For one prompt in an empty context: fed as a Client is, with the tokens of a picture that reach each stage."""

    def __init__(self, path: Path, second: int, third: int):
        self.legs = [Leg(path, 0, second), Leg(path, second, third), Leg(path, third, -1)]
        self.is_mrope = self.legs[0].client.is_mrope
        self.next = 0

    def _pass(self, rows: Sequence[int] | np.ndarray, positions: np.ndarray, reach: Sequence[Sequence[int]]) -> None:
        states = np.empty(0)
        left: Sequence[int] = range(len(rows))
        for leg, wanted in zip(self.legs, [left, *reach], strict=True):
            places = [list(left).index(index) for index in wanted]
            left = wanted
            states = states[places] if len(states) else states
            if len(wanted) > 0:
                chosen = np.asarray(rows)[list(wanted)]
                states = leg.feed(chosen, positions[..., list(wanted)], states, output=True)

    def text(self, ids: Sequence[int]) -> np.ndarray:
        positions = np.arange(self.next, self.next + len(ids))
        if self.is_mrope:
            positions = np.stack([positions] * 3 + [np.zeros_like(positions)])
        self.next += len(ids)
        self._pass(ids, positions, [range(len(ids))] * 2)
        return self.legs[-1].client.logits()

    def image(self, embd: np.ndarray, positions: np.ndarray, kept: Sequence[int], deep: Sequence[int]) -> None:
        self._pass(embd, positions, [kept, deep])
        self.next = int(positions[:3].max() if self.is_mrope else positions.max()) + 1

    def close(self) -> None:
        for leg in self.legs:
            leg.client.close()
