"""HalfV in plain torch, written from the description of the method and not from the native code.

A whole conversation is one table of tokens. A layer computes K and V for the tokens that are `visible` in it and
everything else for those that are `updated`; the three stages differ in these two sets alone:

    stage I    layers [0, ivr_layer)          all tokens visible and updated
    stage II   layers [ivr_layer, ssr_layer)  text and the kept visual tokens visible and updated
    stage III  layers [ssr_layer, n_layer)    updated: text and the top visual tokens; visible: the same, and in mode
                                              `frozen` also the other kept ones, whose hidden states no longer change

Further stages, where a profile has some, end stage III: each sees text and a share of the original visual tokens,
chosen as in mode `top` among those that the stage before updates.

With `ivr_bias` each logit of attention to a visual token in stage II and behind has that times log n on top, n the
tokens of its picture that it stands for. A token that leaves counts to the most alike of those that stay, by the states
that enter stage II; one that comes later stands for itself.

Tokens reach a stage in steps: at a question, or before one when the picture is prepared. `since` has the step of each
token, NEVER for a pruned one. A token sees what precedes it and reached the stage no later than itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tests.support.reference.transformer import Transformer

NEVER = 1 << 30


@dataclasses.dataclass
class Text:
    """Token ids. `pos` is the first one's position; it continues after what came before when not given.

    `asks`: its last token asks for an output, which settles the pictures so far. The last text always does.
    `topup`: a new question begins here; when it asks, the pruned tokens that matter most to it come back.
    """

    ids: Sequence[int]
    pos: int | None = None
    asks: bool = False
    topup: bool = False


@dataclasses.dataclass
class Image:
    """Embeddings [n, n_embd_inp]. `pos` is [4, n] for M-RoPE and [n] otherwise; consecutive when not given.

    Tokens of a picture that is not causal see all of that picture, except those that join stage II after a question:
    they go causally there, and those of a later question everywhere.
    """

    embd: np.ndarray
    pos: np.ndarray | None = None
    causal: bool = True


@dataclasses.dataclass
class Prepare:
    """Here the client prepares what it has fed."""


Segment = Text | Image | Prepare


@dataclasses.dataclass(frozen=True)
class Profile:
    ivr_layer: int
    ivr_keep: float
    ivr_anchors: float
    ssr_layer: int
    ssr_update: float
    ssr_rest: str
    min_visual_tokens: int = 64
    further_layers: Sequence[int] = ()
    further_keep: Sequence[float] = ()
    ffn_layer: int = 1
    ffn_keep: float = 1.0
    heads_layer: int = 1
    heads_keep: float = 1.0
    neighbours_layer: int = 1
    neighbours_width: int = 0
    ivr_query: str = "last"
    ivr_bias: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any] | Profile) -> Profile:
        """From a mapping with the keys of the GGUF metadata, `ivr.layer`, or with the names above, `ivr_layer`."""
        if isinstance(values, Profile):
            return values
        return cls(**{key.replace(".", "_"): value for key, value in values.items() if key != "version"})


@dataclasses.dataclass
class Result:
    logits: np.ndarray  # of the last token
    kept: list[list[int]]  # per image: sorted indices of the tokens that reach stage II
    deep: list[list[int]]  # per image: sorted indices of the tokens still updated in stage III
    further: list[list[list[int]]]  # the same of each stage behind it
    states: list[torch.Tensor] | None  # per layer boundary (n_layer + 1): hidden states [n_tokens, n_embd]


@dataclasses.dataclass
class Step:
    last: int  # the row of the last token fed so far: at a question, the one that chooses
    asks: bool
    topup: bool = False


@dataclasses.dataclass
class Table:
    hidden: torch.Tensor  # [n, n_embd]
    deepstack: torch.Tensor  # [n_deepstack, n, n_embd], zero for text
    pos: torch.Tensor  # [4, n]
    images: list[torch.Tensor]  # per image the rows that it occupies
    mutual: torch.Tensor  # [n]: the picture that is not causal, or -1
    steps: list[Step]
    due: torch.Tensor  # [n]: the first step that can carry a token on


def share(ratio: float, count: int) -> int:
    """floor(ratio * count) for a ratio that travelled as float32, so that 5% of 60 is 3."""
    return math.floor(float(np.float32(ratio)) * (1 + 2**-23) * count + 1e-6)


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the highest scores, best first; of equal ones the first."""
    return np.argsort(-scores, kind="stable")[:count]


def cover(features: np.ndarray, anchors: Sequence[int], count: int) -> np.ndarray:
    """Greedy farthest-point sampling by 1 - cos, seeded by the anchors: `count` sorted indices, anchors included."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    nearest = np.full(len(unit), np.inf)
    chosen: list[int] = []
    for step in range(count):
        index = int(anchors[step]) if step < len(anchors) else int(np.argmax(nearest))
        chosen.append(index)
        nearest = np.minimum(nearest, 1 - unit @ unit[index])
        nearest[chosen] = -np.inf
    return np.sort(np.array(chosen, dtype=int))


def visual_scores(query: torch.Tensor, keys: torch.Tensor) -> np.ndarray:
    """The scorer: softmax of one query over visual keys only, not scaled, mean over heads.

    query [n_head, head_dim]; keys [n_head_kv, n, head_dim].
    """
    keys = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)
    return torch.softmax(torch.einsum("hd,hnd->hn", query, keys), dim=-1).mean(0).double().numpy()


def question_scores(q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor, question: range) -> np.ndarray:
    """What the tokens of a question look at, as the layer has it, among these rows and those of them up to their own;
    mean over them and heads. q [n_head, n, head_dim] and k [n_head_kv, n, head_dim] with RoPE."""
    found = []
    for token in question:
        seen = torch.cat([rows, torch.arange(question.start, token + 1)])
        found.append(visual_scores(q[:, token] / q.shape[-1] ** 0.5, k[:, seen])[: len(rows)])
    return np.mean(found, axis=0)


class Reference(Transformer):
    def run(
        self,
        segments: Sequence[Segment],
        profile: Mapping[str, Any] | Profile | None = None,
        states: bool = False,
    ) -> Result:
        """A conversation from an empty memory, up to the logits of its last token. Without a profile: dense."""
        if not segments or not isinstance(segments[-1], Text):
            raise ValueError("the prompt must end with text: its last token settles the images")
        profile = None if profile is None else Profile.of(profile)
        table = self._embed(segments)
        hidden, pos = table.hidden, table.pos
        self.kv: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.unseen: list[torch.Tensor] = []  # per layer: which cells each head never sees
        self.raised: list[torch.Tensor] = []  # per layer: what attention to each cell has on top
        stands_for = torch.ones(len(hidden), dtype=self.dtype)
        boundaries = [hidden]

        prunable = [rows for rows in table.images if profile and len(rows) >= profile.min_visual_tokens]
        since = torch.zeros(len(hidden), dtype=torch.long)
        updated = since < NEVER
        tapped: tuple[torch.Tensor, torch.Tensor] = (hidden, hidden)
        in_stage2 = in_stage3 = updated
        further = dict(zip(profile.further_layers, profile.further_keep, strict=True)) if profile else {}
        asked = {profile.ssr_layer, *further} if profile else set()
        in_further = []
        precedes = self.precedes(pos, pos)

        for layer in range(self.n_layer):
            if profile and layer == profile.ivr_layer:
                since = self._start_stage2(profile, table, prunable, hidden, *tapped)
                updated = in_stage2 = since < NEVER
                features = torch.nn.functional.normalize(self.norm(hidden, "output_norm.weight"), dim=-1)
                arrived = torch.full_like(since, 0)
                stands_for = self._count(stands_for, features, prunable, arrived, since)
            if profile and layer == profile.ssr_layer:
                arrived = self._waits(profile, table, since)
                since, updated = self.start_stage3(profile, table, prunable, since, *tapped)
                in_stage3 = updated
                stands_for = self._count(stands_for, features, prunable, arrived, since)
            if layer in further:
                arrived = since
                since, updated = self.start_further(further[layer], table, prunable, since, updated, *tapped)
                stands_for = self._count(stands_for, features, prunable, arrived, since)
                in_further.append(updated)

            narrow = torch.zeros(len(hidden), dtype=torch.bool)
            for rows in prunable:
                narrow[rows] = True
            n_groups = self.n_head_kv
            if profile and profile.heads_keep < 1 and layer >= profile.heads_layer:
                n_groups = max(1, int(self.n_head_kv * profile.heads_keep + 1e-6))

            # the projections; q and k after their own norm where the architecture has one, before RoPE
            q, k, v = self.qkv(self.norm(hidden, f"blk.{layer}.attn_norm.weight"), layer)
            k[n_groups:, narrow] = v[n_groups:, narrow] = 0
            if profile and layer == profile.ivr_layer - 1:
                tapped = (q, k)
            q, k = self.rope(q, pos), self.rope(k, pos)
            if layer + 1 in asked or (profile and profile.ivr_query == "question" and layer == profile.ivr_layer - 1):
                tapped = (q, k)

            visible = since < NEVER
            mutual = (table.mutual >= 0) & (table.mutual[:, None] == table.mutual)
            if profile and profile.ivr_layer <= layer < profile.ssr_layer:
                mutual &= (since <= table.due)[:, None]  # what joins after the question joins causally
            sees = (precedes | mutual) & (since <= since[:, None])
            if profile and profile.neighbours_width and layer >= profile.neighbours_layer:
                sees &= self._near(table, prunable, narrow, pos, profile.neighbours_width // 2)
            self.kv.append((k[:, visible], v[:, visible], pos[:, visible]))
            bias = profile.ivr_bias if profile and layer >= profile.ivr_layer else 0.0
            self.raised.append(bias * stands_for[visible].log())
            dropped = torch.arange(self.n_head) >= n_groups * (self.n_head // self.n_head_kv)
            self.unseen.append(dropped[:, None, None] & narrow[visible])
            channels = None
            if profile and profile.ffn_keep < 1 and layer >= profile.ffn_layer:
                n_ff = self.weights[f"blk.{layer}.ffn_down.weight"].shape[1]
                channels = torch.full((len(hidden),), n_ff)
                for rows in prunable:
                    channels[rows] = max(32, int(n_ff * profile.ffn_keep + 1e-6) // 32 * 32)
                channels = channels[updated]
            heads = torch.where(narrow, n_groups * (self.n_head // self.n_head_kv), self.n_head)[updated]
            out = self.rest_of_layer(
                hidden[updated], q[:, updated], k[:, visible], v[:, visible],
                sees[updated][:, visible] & ~self.unseen[layer], layer, channels, heads, self.raised[layer],
            )  # fmt: skip
            if layer < self.n_deepstack:
                out = out + table.deepstack[layer, updated]
            hidden = hidden.clone()
            hidden[updated] = out
            boundaries.append(hidden)

        self.next_pos = int(pos[:3].max()) + 1
        return Result(
            logits=self.logits(hidden[-1]),
            kept=[in_stage2[rows].nonzero().flatten().tolist() for rows in table.images],
            deep=self._chosen(table, in_stage3 if profile and profile.ssr_layer < self.n_layer else updated),
            further=[self._chosen(table, stage) for stage in in_further],
            states=boundaries if states else None,
        )

    def _near(
        self, table: Table, prunable: list[torch.Tensor], narrow: torch.Tensor, pos: torch.Tensor, reach: int
    ) -> torch.Tensor:
        """[queries, keys]: visual tokens see of visual ones those of their picture that are near. Where positions do
        not say where, pictures are square; others are seen whole, and those whose tokens see each other see all."""
        near = ~(narrow[:, None] & narrow)
        for rows in prunable:
            within = torch.ones(len(rows), len(rows), dtype=torch.bool)
            side = math.isqrt(len(rows))
            places = None
            if self.is_mrope:
                places = pos[1:3, rows]
            elif side**2 == len(rows):
                places = torch.stack([torch.arange(len(rows)) // side, torch.arange(len(rows)) % side])
            if table.mutual[rows[0]] >= 0:
                near[rows] = True
                continue
            if places is not None:
                within = ((places[:, :, None] - places[:, None]).abs() <= reach).all(0)
            near[rows[:, None], rows] = within
        return near

    @staticmethod
    def _chosen(table: Table, of: torch.Tensor) -> list[list[int]]:
        return [of[rows].nonzero().flatten().tolist() for rows in table.images]

    def decode(self, token: int) -> np.ndarray:
        """One more token, attending in each layer to what that layer holds; its logits."""
        hidden = self.weights["token_embd.weight"][[token]]
        pos = torch.full((4, 1), self.next_pos)
        self.next_pos += 1
        for layer in range(self.n_layer):
            q, k, v = self.qkv(self.norm(hidden, f"blk.{layer}.attn_norm.weight"), layer)
            old_k, old_v, old_pos = self.kv[layer]
            k, v = torch.cat([old_k, self.rope(k, pos)], 1), torch.cat([old_v, v], 1)
            k_pos = torch.cat([old_pos, pos], 1)
            self.kv[layer] = k, v, k_pos
            seen = torch.nn.functional.pad(
                ~self.unseen[layer], (0, k.shape[1] - self.unseen[layer].shape[-1]), value=True
            )
            sees = self.precedes(pos, k_pos) & seen
            raised = torch.nn.functional.pad(self.raised[layer], (0, k.shape[1] - len(self.raised[layer])))
            hidden = self.rest_of_layer(hidden, self.rope(q, pos), k, v, sees, layer, raised=raised)
        return self.logits(hidden[-1])

    def _embed(self, segments: Sequence[Segment]) -> Table:
        inputs, positions, images, mutual, steps, due = [], [], [], [], [], []
        next_pos = n_tokens = 0
        waits = topup = False
        for number, segment in enumerate(segments, start=1):
            if isinstance(segment, Prepare):
                steps.append(Step(n_tokens - 1, asks=False))
                continue
            length = len(segment.ids if isinstance(segment, Text) else segment.embd)
            due.append(torch.full((length,), len(steps)))
            mutual.append(torch.full((length,), -1))
            if isinstance(segment, Text):
                rows = torch.zeros(length, self.n_embd_inp, dtype=self.dtype)
                rows[:, : self.n_embd] = self.weights["token_embd.weight"][list(segment.ids)]
                start = next_pos if segment.pos is None else segment.pos
                pos = torch.arange(start, start + length).expand(4, -1)
                topup = topup or segment.topup
                # text with nothing to wait for goes through all layers at once
                if segment.asks or number == len(segments) or not (waits or topup):
                    steps.append(Step(n_tokens + length - 1, asks=True, topup=topup))
                    waits = topup = False
            else:
                rows = torch.from_numpy(segment.embd).to(self.dtype)
                pos = torch.arange(next_pos, next_pos + length)
                if segment.pos is not None:
                    pos = torch.from_numpy(np.asarray(segment.pos)).long()
                pos = pos.expand(4, -1)
                if not segment.causal:
                    mutual[-1][:] = len(images)
                images.append(torch.arange(n_tokens, n_tokens + length))
                waits = True
            inputs.append(rows)
            positions.append(pos)
            next_pos = int(pos[:3].max()) + 1
            n_tokens += length
        states = torch.cat(inputs).unflatten(1, (-1, self.n_embd)).transpose(0, 1)
        return Table(states[0], states[1:], torch.cat(positions, 1), images, torch.cat(mutual), steps, torch.cat(due))

    def _start_stage2(
        self,
        profile: Profile,
        table: Table,
        prunable: list[torch.Tensor],
        hidden: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
    ) -> torch.Tensor:
        """The step in which each token reaches stage II. `q` and `k` are those of the layer before, without RoPE but
        where all of the question asks."""
        since = table.due.clone()
        if profile.ivr_keep == 1:
            return since
        for rows in prunable:
            n_kept = max(1, share(profile.ivr_keep, len(rows)))
            n_anchors = share(profile.ivr_anchors, n_kept)
            n_late = min(n_anchors, max(8, share(0.025, len(rows))))  # when the picture is in already
            features = self.norm(hidden[rows], "output_norm.weight").double().numpy()
            keys = k[:, rows]
            first = int(table.due[rows[0]])
            since[rows] = NEVER
            covered = asked = False
            for number, step in enumerate(table.steps[first:], start=first):
                rest = (since[rows] == NEVER).nonzero().flatten().numpy()
                chosen = np.array([], dtype=int)
                if not step.asks:
                    if not covered:
                        chosen = cover(features, [], n_kept - n_late)
                    covered = True
                elif not asked or step.topup:
                    count = n_late if covered else n_anchors
                    if profile.ivr_query == "question":
                        scores = question_scores(q, k, rows[rest], self._question(table, number))
                    else:
                        scores = visual_scores(q[:, step.last], keys[:, rest])
                    chosen = rest[top(scores, count)]
                    if asked:
                        table.mutual[rows[chosen]] = -1
                    elif not covered:
                        chosen = cover(features, chosen, n_kept)
                    covered = asked = True
                since[rows[chosen]] = number
        return since

    @staticmethod
    def _count(
        counts: torch.Tensor,
        features: torch.Tensor,
        prunable: list[torch.Tensor],
        arrived: torch.Tensor,
        since: torch.Tensor,
    ) -> torch.Tensor:
        """What tokens stand for where a stage begins, of those in the first step in which a picture gets there: in
        `arrived` the step in which each could, in `since` that in which it does."""
        counts = counts.clone()
        for rows in prunable:
            first = rows[arrived[rows] == arrived[rows].min()]
            stays = since[first] == since[first].min()
            kept, rest = first[stays], first[~stays]
            if len(rest) and since[kept[0]] < NEVER:
                nearest = (features[rest] @ features[kept].T).argmax(1)
                counts.index_add_(0, kept[nearest], counts[rest])
        return counts

    @staticmethod
    def _waits(profile: Profile, table: Table, since: torch.Tensor) -> torch.Tensor:
        """When tokens reach stage III if they do: a choice among them waits for a question."""
        since = since.clone()
        if any(0 < keep < 1 for keep in (profile.ssr_update, *profile.further_keep)):
            for number, step in enumerate(table.steps):
                if not step.asks:
                    since[since == number] = number + 1
        return since

    @staticmethod
    def _question(table: Table, number: int) -> range:
        """The rows of text behind the last picture, and the last question, that ask in a step."""
        last = table.steps[number].last
        ended = [step.last for step in table.steps[:number] if step.asks]
        seen = [int(image[-1]) for image in table.images if image[-1] < last]
        return range(max([*ended, *seen]) + 1, last + 1)

    @staticmethod
    def start_stage3(
        profile: Profile,
        table: Table,
        prunable: list[torch.Tensor],
        since: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The step in which each token reaches stage III, and which go on being updated there.

        `q` and `k` are those of the layer before, with RoPE.
        """
        since = Reference._waits(profile, table, since)
        updated = since < NEVER
        if profile.ssr_update == 1:
            return since, updated
        for rows in prunable:
            n_updated = share(profile.ssr_update, len(rows))
            for number, step in enumerate(table.steps):
                arrived = rows[since[rows] == number]
                updated[arrived] = False
                if n_updated and len(arrived):
                    updated[arrived[top(visual_scores(q[:, step.last], k[:, arrived]), n_updated)]] = True
        if profile.ssr_rest == "dropped":
            since[~updated] = NEVER
        return since, updated

    @staticmethod
    def start_further(
        keep: float,
        table: Table,
        prunable: list[torch.Tensor],
        since: torch.Tensor,
        updated: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As stage III with the rest dropped, among the tokens that are still updated."""
        since, updated = since.clone(), updated.clone()
        if keep == 1:
            return since, updated
        for rows in prunable:
            n_stay = share(keep, len(rows))
            for number, step in enumerate(table.steps):
                arrived = rows[(since[rows] == number) & updated[rows]]
                updated[arrived] = False
                if n_stay and len(arrived):
                    updated[arrived[top(visual_scores(q[:, step.last], k[:, arrived]), n_stay)]] = True
        since[~updated] = NEVER
        return since, updated
