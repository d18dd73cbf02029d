"""Further parts of a profile, which a calibration tries where it is asked to: all of them stand here.

A part is given a profile and says what else it could be. The search gives each as many tokens as the speedup allows, so
that it stays only where what it saves is worth more as tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from halfv_edge.profile.profile import DROPPED, Profile

SHARES = (0.75, 0.5)  # of channels or heads
BIASES = (0.25, 0.5, 1.0)
LATE = (3 / 4, 7 / 8)  # of the depth, from where on there may be text alone

Part = Callable[[Profile, int], Iterator[Profile]]  # from a profile, and the layers of its model


def channels(profile: Profile, n_layer: int) -> Iterator[Profile]:
    """Visual tokens take the first channels alone: of a file that `halfv channels` ordered."""
    yield dataclasses.replace(profile, ffn_layer=1, ffn_keep=1.0)
    for layer in _from(profile, n_layer):
        for share in SHARES:
            yield dataclasses.replace(profile, ffn_layer=layer, ffn_keep=share)


def heads(profile: Profile, n_layer: int) -> Iterator[Profile]:
    """Visual tokens have the first groups of heads alone."""
    yield dataclasses.replace(profile, heads_layer=1, heads_keep=1.0)
    for layer in _from(profile, n_layer):
        for share in SHARES:
            yield dataclasses.replace(profile, heads_layer=layer, heads_keep=share)


def wipe(profile: Profile, n_layer: int) -> Iterator[Profile]:
    """Text alone in the last layers. A profile without a stage III has it as that, which the search tries anyway."""
    base = dataclasses.replace(profile, further_layers=(), further_keep=())
    yield base
    gone = profile.ssr_rest == DROPPED and profile.ssr_update == 0
    for layer in sorted({*(round(share * n_layer) for share in LATE), n_layer - 1}):
        if profile.ssr_layer < layer < n_layer and not gone:
            yield dataclasses.replace(base, further_layers=(layer,), further_keep=(0.0,))


def bias(profile: Profile, n_layer: int) -> Iterator[Profile]:
    """Attention to a kept token grows with how many it stands for. It gives no tokens back and costs hardly any."""
    for beta in (0.0, *BIASES):
        yield dataclasses.replace(profile, ivr_bias=beta)


def _from(profile: Profile, n_layer: int) -> list[int]:
    """With stage II, and halfway from there to the end."""
    return sorted({profile.ivr_layer, (profile.ivr_layer + n_layer) // 2})


PARTS: dict[str, Part] = {"channels": channels, "wipe": wipe, "heads": heads, "bias": bias}
TAKE_PARTS = ("channels", "heads")  # of matrices, which a processor must then not pack for itself
