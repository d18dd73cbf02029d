"""One answer in the making: the question's prompt, then token by token."""

from __future__ import annotations

import time
from typing import Any, Literal

from halfv_edge.engine.answer_text import AnswerText
from halfv_edge.engine.context import StoppedError
from halfv_edge.engine.conversation import Conversation
from halfv_edge.engine.options import AnswerOptions
from halfv_edge.engine.sampling import Sampler
from halfv_edge.engine.stats import Stats, pruning_between, visual_counts

FinishReason = Literal["stop", "length", "interrupted"]


class Generation:
    """Steps of an answer. Each one holds the conversation's lock, and the model's while it computes."""

    def __init__(
        self,
        conversation: Conversation,
        content: str,
        prompt: str,
        n_waiting: int,
        options: AnswerOptions,
        sampler: Sampler,
        start: float,
    ):
        """`n_waiting`: pictures that waited before the question came with more; they stay if it is not asked."""
        self.conversation = conversation
        self.text = AnswerText(options.stop)
        self.finish_reason: FinishReason | None = None  # once it is written down
        self.stats: Stats | None = None
        self.is_abandoned = False  # nobody will read on
        self._is_over = False
        self._content = content
        self._prompt = prompt
        self._n_waiting = n_waiting
        self._max_tokens = options.max_tokens
        self._sampler = sampler
        self._start = start
        self._tokens: list[int] = []
        self._first = 0.0  # when the first token was there
        self._generate_sec = 0.0
        self._ended: Literal["end", "stop", "length", "interrupted"] = "interrupted"
        self.n_drafted = self.n_accepted = 0
        self._counts: dict[str, Any] = {}  # fields of Stats, as of the first token

    def next_piece(self) -> str | None:
        """Some more text; None when there is no more. (Not a generator, whose end would have to wait for the lock.)"""
        try:
            while not self._is_over:
                self._is_over = not self._step()
                if piece := self.text.take(final=self._is_over):
                    return piece
        except BaseException:
            self._is_over = True
            raise
        finally:
            if self._is_over:
                self.end()
        return None

    def _step(self) -> bool:
        """One token; False when there are no more."""
        conversation = self.conversation
        with conversation.lock:
            if conversation.answering is not self:  # the chat was closed or reset
                return False
            try:
                if not self._first:
                    return self.begin()
                if self.is_full():
                    return self.write(None)
                start = time.perf_counter()
                with conversation.runtime.lock:
                    going = self._next_tokens()
                self.count_time(time.perf_counter() - start)
                return going
            except StoppedError:
                return False

    def _next_tokens(self) -> bool:
        """Evaluate the last token, and drafts of what may follow, and go on as far as they are what is sampled."""
        context, drafter = self.conversation.context, self.conversation.drafter
        drafts = drafter.draft(context, self.last_token, self._room_for_drafts()) if drafter else []
        self.n_drafted += len(drafts)
        count = len(context.items) + 1
        context.evaluate_each([self.last_token, *drafts])
        for row, draft in enumerate([*drafts, None]):
            token = self.sample(row)
            going = self.write(token)
            if not going or token != draft:
                break
        self.n_accepted += row
        context.truncate(count + row)
        return going

    def _room_for_drafts(self) -> int:
        """One more token follows them."""
        context = self.conversation.context
        left = min(context.n_left, context.n_batch) - 1
        return left if self._max_tokens is None else min(left, self._max_tokens - len(self._tokens) - 1)

    def begin(self) -> bool:
        """The first token, as of `write`; the conversation's lock is held, the model's is not."""
        conversation = self.conversation
        conversation.encode()
        with conversation.runtime.lock:
            conversation.prefill(self._prompt)
            token = self.sample()
        self._first = time.perf_counter()
        self._counts = self._count()
        return self.write(token)

    @property
    def last_token(self) -> int:
        """It was sampled, and is not evaluated yet."""
        return self._tokens[-1]

    def is_full(self) -> bool:
        """Whether no other token may come."""
        context = self.conversation.context
        if len(self._tokens) == self._max_tokens or context.n_left < 1:
            self._ended = "length"
        return self._ended == "length"

    def sample(self, row: int = -1) -> int | None:
        """The next token from an output of the last batch, None when the answer ends; the model's lock is held."""
        token = self._sampler.sample(self.conversation.context.pointer, row)
        if token is None or self.conversation.runtime.is_end(token):
            self._ended = "end"
            return None
        return token

    def count_time(self, seconds: float) -> None:
        """What a token after the first one took."""
        self._generate_sec += seconds

    def write(self, token: int | None) -> bool:
        """Take a token down; False when it was the last, or there was none."""
        if token is None:
            self.text.add(b"", final=True)
            return False
        self._tokens.append(token)
        self.text.add(self.conversation.runtime.piece(token))
        if self.text.is_stopped:
            self._ended = "stop"
        return not self.text.is_stopped

    def _count(self) -> dict[str, Any]:
        context, turn = self.conversation.context, self.conversation.turn
        return {
            "ttft_sec": self._first - self._start,
            "encode_sec": turn.encode_sec,
            "prefill_sec": context.decode_sec - turn.decode_sec,
            "ahead_sec": turn.ahead_sec,
            "n_prompt": context.n_evaluated - turn.n_evaluated,
            "n_encoded": turn.n_encoded,
            **visual_counts(context.items),
            **pruning_between(turn.halfv, context.stats()),
        }

    def stop(self) -> None:
        """Soon there are no more pieces; from any thread."""
        if self.conversation.answering is self:
            self.conversation.context.request_stop()

    def abandon(self) -> None:
        """As end(), from a place that must not wait, such as a garbage collection: else the next question does it."""
        self.is_abandoned = True
        if self.conversation.lock.acquire(blocking=False):
            try:
                self.end()
            finally:
                self.conversation.lock.release()

    def end(self) -> None:
        """Write down what was answered; a question without a single token was not asked."""
        conversation = self.conversation
        with conversation.lock:
            self._sampler.close()
            if conversation.answering is not self:
                return
            conversation.answering = None
            self.finish_reason = "stop" if self._ended == "end" else self._ended
            if not self._first:
                conversation.give_back(self._n_waiting)
                return
            self.text.take(final=True)
            conversation.say(("user", self._content), ("assistant", self.text.whole))
            conversation.waiting = []
            if self.text.is_tokenizable:  # all tokens but the last one sampled were evaluated
                unevaluated = [] if self._ended == "end" else self._tokens[-1:]
                conversation.answered(self._prompt, self.text.whole, unevaluated)
            later = len(self._tokens) - 1
            self.stats = conversation.stats = Stats(
                **self._counts,
                n_generated=len(self._tokens),
                tokens_per_sec=later / self._generate_sec if later > 0 and self._generate_sec else 0.0,
                stopped=self._ended,
                n_drafted=self.n_drafted,
                n_accepted=self.n_accepted,
            )
            conversation.turn = conversation.new_turn()
