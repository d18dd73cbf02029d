"""Many questions that have nothing to do with each other, answered together: a sequence of one context for each."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from halfv_edge.engine.context import Context, StoppedError
from halfv_edge.engine.conversation import Conversation
from halfv_edge.engine.generation import FinishReason, Generation
from halfv_edge.engine.images import Source, load_all
from halfv_edge.engine.messages import Content, Message, Said, read_content, read_messages
from halfv_edge.engine.options import AnswerOptions
from halfv_edge.engine.runtime import Runtime
from halfv_edge.engine.sampling import Sampler
from halfv_edge.engine.stats import Stats
from halfv_edge.errors import HalfVError

MOST_TOGETHER = 256  # sequences that a llama_context can have

Question: TypeAlias = tuple[Content, Source | Iterable[Source]] | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one of many questions."""

    text: str
    """The answer; of one that failed, what there was of it."""
    finish_reason: FinishReason | None
    """"stop" or "length"; None when it failed."""
    stats: Stats | None
    """What it took; None when it failed before its first token."""
    error: HalfVError | None = None
    """Why it failed."""


def read_question(question: Question) -> list[Said]:
    """The messages that end with it; whatever is wrong with them is one sentence."""
    if isinstance(question, tuple) and len(question) == 2 and not hasattr(question[0], "keys"):
        content, images = question
        return [Said("user", [*load_all(images), *read_content(content, "question")])]
    said = read_messages(question)
    if not said or said[-1].role != "user":
        raise HalfVError("messages must end with one of the user's: that is the question.")
    return said


class Many:
    """Answers questions in their order, some at a time. It has a context of its own, so chats go on beside it."""

    def __init__(self, runtime: Runtime, options: AnswerOptions, n_together: int):
        self.runtime = runtime
        self._options = options
        self._lock = threading.RLock()  # before the model's; held for each step
        with runtime.lock:
            runtime.check_open()
            self._context = runtime.context(undo_bytes=0, n_seq=n_together)  # no question is taken back
            self._free = self._context.sequences()
            runtime.chats.add(self)
        self._is_open = True

    def close(self) -> None:
        """Free the context; answers in the making are lost."""
        self._context.request_stop()
        with self._lock:
            if self._is_open:
                self._is_open = False
                with self.runtime.lock:
                    self._context.close()

    def outcomes(self, questions: Iterable[Question]) -> Iterator[Outcome]:
        """One for each question, in their order, as soon as it and those before it are there."""
        coming = enumerate(questions)
        active: dict[int, Generation] = {}
        done: dict[int, Outcome] = {}
        given, all_seen = 0, False
        try:
            while not (all_seen and not active and not done):
                while self._free and not all_seen:
                    if (next_one := next(coming, None)) is None:
                        all_seen = True
                        break
                    at, question = next_one
                    with self._step():
                        begun = self._begin(question)
                    if isinstance(begun, Generation):
                        active[at] = begun
                    else:
                        done[at] = begun
                if active:
                    with self._step():
                        for at, error in self._advance(active).items():
                            generation = active.pop(at)
                            done[at] = self._end(generation.conversation.context, generation, error)
                while given in done:
                    yield done.pop(given)
                    given += 1
        finally:
            self.close()

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        with self._lock:
            if not self._is_open:
                raise HalfVError(f"The model {self.runtime.path.name} was closed: load it again.")
            try:
                yield
            except StoppedError as error:
                raise HalfVError(f"The model {self.runtime.path.name} was closed: load it again.") from error

    def _begin(self, question: Question) -> Generation | Outcome:
        """Its first token; an Outcome when it failed, or is over already."""
        start = time.perf_counter()
        generation = None
        context = self._free.pop()
        conversation = Conversation(self.runtime, context)
        try:
            *history, last = read_question(question)
            conversation.history(history)
            content = conversation.marked(last.parts)
            prompt = conversation.render(content)
            conversation.check_room(prompt, "This question")
            sampler = Sampler(self._options, self.runtime.vocab)
            generation = Generation(conversation, content, prompt, 0, self._options, sampler, start)
            conversation.answering = generation
            return generation if generation.begin() else self._end(context, generation, None)
        except HalfVError as error:
            return self._end(context, generation, error)

    def _advance(self, active: dict[int, Generation]) -> dict[int, HalfVError | None]:
        """Another token for each; those that are over, and why if they failed."""
        over: dict[int, HalfVError | None] = {}
        going = []
        for at, generation in active.items():
            if generation.is_full():
                generation.write(None)
                over[at] = None
            else:
                going.append((at, generation))
        try:
            over |= self._next_tokens(going)
        except HalfVError:  # whose fault it is shows when each goes alone
            for at, generation in going:
                try:
                    over |= self._next_tokens([(at, generation)])
                except HalfVError as error:
                    over[at] = error
        return over

    def _next_tokens(self, going: Sequence[tuple[int, Generation]]) -> dict[int, None]:
        """Evaluate the last token of each and sample the next one; those that are over."""
        if not going:
            return {}
        start = time.perf_counter()
        with self.runtime.lock:
            contexts = [generation.conversation.context for _, generation in going]
            Context.evaluate_together(contexts, [generation.last_token for _, generation in going])
            tokens = [generation.sample(row) for row, (_, generation) in enumerate(going)]
        seconds = time.perf_counter() - start
        over: dict[int, None] = {}
        for (at, generation), token in zip(going, tokens, strict=True):
            generation.count_time(seconds)
            if not generation.write(token):
                over[at] = None
        return over

    def _end(self, context: Context, generation: Generation | None, error: HalfVError | None) -> Outcome:
        """What became of a question; its sequence is free again."""
        if generation:
            generation.end()
        with self.runtime.lock:
            context.clear()
        self._free.append(context)
        if generation is None:
            return Outcome("", None, None, error)
        return Outcome(generation.text.whole, None if error else generation.finish_reason, generation.stats, error)

    def __del__(self) -> None:
        if hasattr(self, "_is_open"):  # else its making failed
            self.close()
