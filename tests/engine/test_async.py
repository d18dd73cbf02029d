"""Answers in an event loop: the same ones; cancelling stops them and leaves the chat usable."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from halfv_edge import Chat, HalfVError, Model
from halfv_edge.engine.encoder import Encoder
from tests.support.vlm import LONG, NEXT, QUESTION, Vlms, picture

ENDLESS = "root ::= [a-z]{900}"


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_the_same_answers(model: Model) -> None:
    options = {"max_tokens": 12, "temperature": 0}
    with model.chat() as chat:
        chat.add_image(picture(1))
        expected = [chat.answer(QUESTION, **options), chat.answer(NEXT, picture(2), **options)]

    async def talk() -> None:
        with model.chat() as chat:
            await chat.aadd_image(picture(1))
            answer = await chat.aask(QUESTION, **options)
            assert answer.finish_reason is None and answer.stats is None
            pieces = [piece async for piece in answer]
            assert "".join(pieces) == answer.text == expected[0] and len(pieces) > 1
            assert answer.finish_reason in ("stop", "length") and answer.stats == chat.stats
            assert await chat.aanswer(NEXT, picture(2), **options) == expected[1]

    run(talk())


def test_the_loop_goes_on_while_chats_answer(model: Model) -> None:
    async def talk() -> None:
        with model.chat() as one, model.chat() as two:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.001)
                    ticks += 1

            ticking = asyncio.create_task(tick())
            said = await asyncio.gather(
                *(chat.aanswer(QUESTION, picture(at), grammar=LONG) for at, chat in enumerate((one, two)))
            )
            ticking.cancel()
            assert all(len(text) == 60 for text in said) and ticks > 10

    run(talk())


async def usable(chat: Chat, n_messages: int) -> None:
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * (n_messages // 2)
    assert await chat.aanswer(NEXT, grammar=LONG, max_tokens=3)


async def wait_for_text(chat: Chat, begun: asyncio.Event) -> None:
    while not (chat._conversation.answering and chat._conversation.answering.text.whole):
        await asyncio.sleep(0.005)
    begun.set()


@pytest.mark.parametrize("way", ["cancel", "timeout", "twice", "whole"])
def test_cancelling_stops_the_answer(way: str, model: Model) -> None:
    async def talk() -> None:
        with model.chat() as chat:
            begun, waiting = asyncio.Event(), []

            async def read() -> None:
                if way == "whole":
                    waiting.append(asyncio.create_task(wait_for_text(chat, begun)))
                    await chat.aanswer(QUESTION, picture(), grammar=ENDLESS)
                async for _ in await chat.aask(QUESTION, picture(), grammar=ENDLESS):
                    begun.set()

            task = asyncio.create_task(read())
            await begun.wait()
            if way == "timeout":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(task, 0.02)
            else:
                await asyncio.sleep(0.02)
                task.cancel()
                if way == "twice":
                    await asyncio.sleep(0)
                    task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert chat._conversation.answering is None  # at once, not with the next question
            n_tokens = chat.stats.n_generated
            assert chat.stats.stopped == "interrupted" and 0 < n_tokens < 900
            await asyncio.sleep(0.05)
            assert chat.stats.n_generated == n_tokens
            await usable(chat, 2)

    run(talk())


def test_a_loop_that_is_left_ends_the_answer(model: Model) -> None:
    async def talk() -> None:
        with model.chat() as chat:
            async for _ in await chat.aask(QUESTION, picture(), grammar=ENDLESS):
                break
            await usable(chat, 2)
            async with await chat.aask(QUESTION, grammar=ENDLESS) as answer:
                await anext(answer)
            assert answer.finish_reason == "interrupted"
            await usable(chat, 6)

    run(talk())


def test_cancelling_while_a_picture_is_encoded_waits_for_the_encoder(
    vlms: Vlms, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vlms.load("llava", image_cache_mb=0)
    is_in, may_go_on, encode = threading.Event(), threading.Event(), Encoder._run

    def wait_and_run(*args: Any) -> Any:
        is_in.set()
        assert may_go_on.wait(30)
        return encode(*args)

    async def talk() -> None:
        with model.chat() as chat:
            for work in (lambda: chat.aadd_image(picture(1)), lambda: chat.aanswer(QUESTION, picture(2))):
                is_in.clear()
                may_go_on.clear()
                task = asyncio.create_task(work())
                while not is_in.is_set():
                    await asyncio.sleep(0.01)
                task.cancel()
                start = time.monotonic()
                done, _ = await asyncio.wait([task], timeout=0.2)
                assert not done and time.monotonic() - start < 5  # the loop is not blocked
                may_go_on.set()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert chat.messages == []
            assert await chat.aanswer(QUESTION, max_tokens=2, grammar=LONG)
            assert len(chat.token_maps) == 1  # that of add_image; the other question was not asked

    monkeypatch.setattr(Encoder, "_run", wait_and_run)
    run(talk())


def test_errors_come_out(vlms: Vlms) -> None:
    async def talk() -> None:
        with vlms.load("llava").chat() as chat:
            for wrong in (chat.aadd_image("no.png"), chat.aask(QUESTION, "no.png"), chat.aanswer(7)):
                with pytest.raises(HalfVError, match=r"no\.png does not exist|question = 7"):
                    await wrong
            await usable(chat, 0)

    run(talk())
