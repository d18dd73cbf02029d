"""The same answers for an event loop: each step is a call in a thread, and cancelling one stops what it computes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from halfv_edge.engine.answer import Answer
from halfv_edge.engine.generation import FinishReason
from halfv_edge.engine.stats import Stats

STOP_AGAIN_SEC = 0.05  # a stop that comes before the work has begun is forgotten

T = TypeVar("T")


async def in_thread(work: Callable[[], T], stop: Callable[[], None], undo: Callable[[T], None] | None = None) -> T:
    """Do it in a thread. Cancelled, it is stopped and waited for, so that whatever it used can be used again.

    Args:
        work: What to do.
        stop: Makes it end soon; called from the event loop.
        undo: What becomes of its result when nobody waits for that any more.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await _end(future, stop)
        if future.exception() is None and undo is not None:
            await _end(asyncio.get_running_loop().run_in_executor(None, undo, future.result()), lambda: None)
        raise


async def _end(future: asyncio.Future[T], stop: Callable[[], None]) -> None:
    """Wait for it, whoever cancels that."""
    while not future.done():
        stop()
        try:
            await asyncio.wait([future], timeout=STOP_AGAIN_SEC)
        except asyncio.CancelledError:
            continue


class AsyncAnswer:
    """The text of an answer, piece by piece, in an event loop. Cancelling whoever waits for it ends it.

    Example:
        answer = await chat.aask("What is this?", "cat.jpg")
        async for piece in answer:
            print(piece, end="", flush=True)
        print(answer.finish_reason)
    """

    def __init__(self, answer: Answer):
        self._answer = answer

    @property
    def text(self) -> str:
        """All that was given so far."""
        return self._answer.text

    @property
    def finish_reason(self) -> FinishReason | None:
        """As of `Answer`."""
        return self._answer.finish_reason

    @property
    def stats(self) -> Stats | None:
        """As of `Answer`."""
        return self._answer.stats

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        # not of the Answer, which the thread would keep for a moment after the loop was left
        piece = await self._in_thread(self._answer.generation.next_piece)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def read(self) -> str:
        """Wait for the rest; the whole text."""
        return await self._in_thread(self._answer.read)

    def stop(self) -> None:
        """End it soon, from any thread; whoever iterates gets no more."""
        self._answer.stop()

    async def aclose(self) -> None:
        """End it here; what was written stays in the conversation, which can go on."""
        await self._in_thread(self._answer.close)

    async def __aenter__(self) -> AsyncAnswer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await in_thread(work, self._answer.stop, lambda _: self._answer.close())
