"""An answer as its reader has it: iterated over as it is made, from this thread or from an event loop."""

from __future__ import annotations

from collections.abc import Iterator

from halfv_edge.engine.generation import FinishReason, Generation
from halfv_edge.engine.stats import Stats


class Answer:
    """The text of an answer, piece by piece. Close it, or call `chat.stop()`, to end it early.

    Example:
        answer = chat.ask("What is this?", ["cat.jpg"])
        for piece in answer:
            print(piece, end="", flush=True)
        print(answer.finish_reason, answer.stats.ttft_sec)
    """

    def __init__(self, generation: Generation, chat: object):
        self.generation = generation
        self._chat = chat  # stays open as long as it answers

    @property
    def text(self) -> str:
        """All that was given so far."""
        return self.generation.text.given

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended: "stop" (by itself, or before a stop string), "length" (max_tokens, or the context is full) or
        "interrupted". None while it goes on."""
        return self.generation.finish_reason

    @property
    def stats(self) -> Stats | None:
        """What it took. None while it goes on, and when it ended before its first token: then it was not asked."""
        return self.generation.stats

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.generation.next_piece()
        if piece is None:
            raise StopIteration
        return piece

    def read(self) -> str:
        """Wait for the rest; the whole text."""
        for _ in self:
            pass
        return self.text

    def stop(self) -> None:
        """End it soon, from any thread; the one that iterates gets no more."""
        self.generation.stop()

    def close(self) -> None:
        """End it here; what was written stays in the conversation, which can go on."""
        self.stop()  # another thread may be in it
        self.generation.end()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.generation.abandon()
