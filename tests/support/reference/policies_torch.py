"""What other methods choose, in plain torch, written from their papers and released code.

FastV (2403.06764): the last token's attention in layer K - 1, as it was computed there, mean over heads; the best stay.
PyramidDrop (2410.17247): the same score at later layers again; each time a smaller share of the picture's tokens.
DART (2502.11494): pivots are the tokens with the largest L1 norm of their key, four of the picture and four of the
text after it; each adds the tokens of the picture that are least like it by the cosine of hidden
states under the final norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional

from tests.support.reference.halfv_torch import NEVER, Profile, Reference, Step, Table, share

PIVOTS = 4


def attention(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Of one query [n_head, head_dim] to keys [n_head_kv, n, head_dim], mean over heads."""
    keys = keys.repeat_interleave(query.shape[0] // keys.shape[0], dim=0)
    scores = torch.einsum("hd,hnd->hn", query, keys) / math.sqrt(query.shape[-1])
    return torch.softmax(scores, dim=-1).mean(0)


def fastv(query: torch.Tensor, keys: torch.Tensor, picture: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows of the picture; keys are those of the whole prompt."""
    return picture[attention(query, keys)[picture].topk(count).indices].sort().values


def dart(
    keys: torch.Tensor, normed: torch.Tensor, picture: torch.Tensor, text: torch.Tensor, count: int
) -> torch.Tensor:
    """Rows of the picture. keys [n_head_kv, n, head_dim]; normed: hidden states under the final norm."""
    flat = keys.transpose(0, 1).flatten(1)
    own = picture[flat[picture].abs().sum(1).topk(PIVOTS).indices].sort().values
    others = text[flat[text].abs().sum(1).topk(min(PIVOTS, len(text))).indices].sort().values
    taken = set(own.tolist())
    for pivot in [*own.tolist(), *others.tolist()]:
        left = torch.tensor([row for row in picture.tolist() if row not in taken])
        unlike = -functional.cosine_similarity(normed[pivot], normed[left], dim=-1)
        taken |= set(left[unlike.topk(count // (2 * PIVOTS)).indices].tolist())
    return torch.tensor(sorted(taken))


class PolicyReference(Reference):
    """The reference with another way to choose: attention, dart, or rows that are given.

    One question, at the end of the prompt.
    """

    choice: str = "attention"
    given: Sequence[Sequence[int]] = ()  # per picture, for "given" and both stages
    given_deep: Sequence[Sequence[int]] = ()

    def _start_stage2(
        self, profile: Profile, table: Table, prunable: list[torch.Tensor], hidden: torch.Tensor, q: torch.Tensor,
        k: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        since = table.due.clone()
        if profile.ivr_keep == 1:
            return since
        q, k = self.rope(q, table.pos), self.rope(k, table.pos)
        last = len(hidden) - 1
        for number, rows in enumerate(prunable):
            count = max(1, share(profile.ivr_keep, len(rows)))
            if self.choice == "attention":
                chosen = fastv(q[:, last], k, rows, count)
            elif self.choice == "dart":
                visual = torch.cat(table.images).tolist()
                text = torch.tensor([row for row in range(int(rows[-1]) + 1, last + 1) if row not in visual])
                chosen = dart(k, self.norm(hidden, "output_norm.weight"), rows, text, count)
            else:
                chosen = rows[list(self.given[number])]
            since[rows] = NEVER
            since[chosen] = _asks(table.steps)
        return since

    def start_stage3(
        self, profile: Profile, table: Table, prunable: list[torch.Tensor], since: torch.Tensor, q: torch.Tensor,
        k: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        since, updated = since.clone(), since < NEVER
        if profile.ssr_update == 1:
            return since, updated
        alive = updated.nonzero().flatten()
        for number, rows in enumerate(prunable):
            mine = rows[updated[rows]]
            count = share(profile.ssr_update, len(rows))
            if self.choice == "given":
                chosen = rows[list(self.given_deep[number])]
            else:
                places = torch.isin(alive, mine).nonzero().flatten()
                chosen = alive[fastv(q[:, alive[-1]], k[:, alive], places, count)]
            updated[mine] = False
            updated[chosen] = True
        if profile.ssr_rest == "dropped":
            since[~updated] = NEVER
        return since, updated

    def start_further(
        self, keep: float, table: Table, prunable: list[torch.Tensor], since: torch.Tensor, updated: torch.Tensor,
        q: torch.Tensor, k: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        since, updated = since.clone(), updated.clone()
        alive = updated.nonzero().flatten()
        for rows in prunable:
            mine = rows[updated[rows]]
            places = torch.isin(alive, mine).nonzero().flatten()
            updated[mine] = False
            updated[alive[fastv(q[:, alive[-1]], k[:, alive], places, share(keep, len(rows)))]] = True
        since[~updated] = NEVER
        return since, updated


def _asks(steps: Sequence[Step]) -> int:
    return next(number for number, step in reversed(list(enumerate(steps))) if step.asks)
