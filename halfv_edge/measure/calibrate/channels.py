"""How much each channel of a model's feed-forward networks, and each head, says of pictures."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from halfv_cpp import ggml_h
from halfv_cpp.ggml_backend_h import ggml_backend_sched_eval_callback

from halfv_edge.engine.context import n_cells
from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.model import Model
from halfv_edge.measure.arrays import Floats
from halfv_edge.measure.calibrate.samples import Samples
from halfv_edge.measure.progress import Progress, Watch, ignore

# what builders call that which goes into the last matrix; of a layer that has two of these it is the later one
HEADS = re.compile(rb"kqv_out-(\d+)")
INNER = re.compile(rb"ffn_(?:swiglu|swiglu_limited|geglu|reglu|silu|gelu|relu|sqr\(relu\)|gate_par)-(\d+)")


@dataclass(frozen=True, slots=True)
class Heard:
    """By layer, what each channel and each number of each head says."""

    channels: dict[int, Floats]
    heads: dict[int, Floats]


class _Listener:
    """Adds up what goes into the last matrix of each network and of attention, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.said: dict[int, dict[bytes, Floats]] = {}
        self.heads: dict[bytes, Floats] = {}
        self.error: BaseException | None = None
        self.callback = ggml_backend_sched_eval_callback(self._hear)

    @property
    def use(self) -> Heard:
        heads = {int(name.rpartition(b"-")[2]): said for name, said in self.heads.items()}
        return Heard({layer: list(names.values())[-1] for layer, names in self.said.items()}, heads)

    def _hear(self, tensor: int, ask: bool, _user: object) -> bool:
        try:
            name = ggml_h.ggml_get_name(tensor)
            of_head = HEADS.fullmatch(name) if self.on else None
            found = of_head or (INNER.fullmatch(name) if self.on else None)
            n = ggml_h.ggml_nrows(tensor)
            if found and not ask and n > 0:  # the last layer has none that anybody reads
                shape = n, ggml_h.ggml_nbytes(tensor) // 4 // n
                rows = np.ctypeslib.as_array(ggml_h.ggml_get_data_f32(tensor), shape)
                said, layer = np.abs(rows.astype(np.float64)).sum(axis=0), int(found[1])
                names = self.heads if of_head else self.said.setdefault(layer, {})
                names[name] = names[name] + said if name in names else said
            return found is not None
        except BaseException as error:  # nothing may cross the C code
            self.error = error
            return False


def channel_use(model: Model, samples: Samples, *, progress: Watch = ignore) -> Heard:
    """By layer, the sum over visual tokens of what each channel and each head says, unpruned. The last layer's network
    has none: nobody reads what it makes of a picture.

    Args:
        model: On the CPU alone, as states are read where they are computed.
        samples: Pictures, with questions that are not asked.
        progress: Hears of each sample.

    Returns:
        Of each layer that says something, a number per channel, and one for each that its heads give.
    """
    listener = _Listener()
    context = model.runtime.context(None, watch=listener.callback)
    try:
        for at, sample in enumerate(samples.samples):
            progress(Progress(at, len(samples), sample.name))
            items = model.runtime.prompt(sample.load(), sample.question, model.encoder).items
            context.check_room(items, f"A picture of {n_cells(items)} tokens")
            context.clear()
            for item in items:
                listener.on = isinstance(item, Chunk)
                if listener.on:
                    context.evaluate([item], output=False)
            if listener.error:
                raise listener.error
    finally:
        context.close()
    return listener.use
