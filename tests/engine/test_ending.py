"""Answers that end early, and what they leave."""

from __future__ import annotations

import ctypes
import re
import threading
import time

import pytest
from halfv_cpp import ggml_h, llama_h

from halfv_edge.engine.chat import Chat
from halfv_edge.engine.context import ABORT, StoppedError
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from tests.support.vlm import (
    KINDS,
    LONG,
    NEXT,
    QUESTION,
    Vlms,
    detokenized,
    last_prompt,
    picture,
    retell,
)


def finish(model: Model, chat: Chat, answer: str) -> None:
    """After an answer that was ended, the next one is what the same tokens at once would give."""
    assert chat.messages[-1]["content"] == answer
    reply = chat.answer(NEXT, max_tokens=8, temperature=0)
    assert chat.stats.n_prompt < 80 < chat.stats.n_visual
    prompted = last_prompt(chat)
    assert retell(model, prompted, chat.stats.n_generated) == reply
    following = rf"{re.escape(answer)}\s+(USER:|user)\s+{NEXT}"  # and nothing that was cut off
    assert re.search(following, detokenized(model, prompted))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["close", "break", "stop", "stop string", "length"])
def test_an_answer_that_ends_early_leaves_a_usable_chat(kind: str, way: str, vlms: Vlms) -> None:
    model = vlms.load(kind, profile="off")
    with model.chat() as chat:
        chat.add_image(picture())
        options = {"length": {"max_tokens": 5}, "stop string": {"stop": ["zzz", "e"]}}.get(way, {})
        answer = chat.ask(QUESTION, grammar=LONG, temperature=1.0, seed=4, **options)
        seen = [next(answer), next(answer)] if not options else list(answer)
        if way == "close":
            answer.close()
        elif way == "stop":
            chat.stop()
            assert list(answer) == []
        text = answer.text
        if way == "break":
            del answer  # as a for loop that is left does
        expected = {"length": "length", "stop string": "stop"}.get(way, "interrupted")
        assert chat.stats.stopped == expected
        assert text == "".join(seen) and "e" not in text[-1:] and len(text) < 60
        finish(model, chat, text)


def test_stop_from_another_thread(model: Model) -> None:
    with model.chat() as chat:
        chat.add_image(picture())
        answer = chat.ask(QUESTION, grammar="root ::= [a-z]{900}")
        next(answer)
        threading.Timer(0.05, chat.stop).start()
        start = time.monotonic()
        for _ in answer:
            time.sleep(0.01)
        assert time.monotonic() - start < 5
        assert chat.stats.stopped == "interrupted" and 1 < chat.stats.n_generated < 900
        assert chat.answer(NEXT, max_tokens=3, grammar=LONG)


def test_a_question_that_was_stopped_before_its_answer_was_not_asked(model: Model) -> None:
    with model.chat(mode="exact") as chat:
        expected = chat.answer(QUESTION, [picture()], max_tokens=8, temperature=0)
    with model.chat(mode="exact") as chat:
        for end in (lambda answer: chat.stop(), lambda answer: answer.close()):
            answer = chat.ask(QUESTION, [picture()], max_tokens=8, temperature=0)
            end(answer)
            assert list(answer) == [] and chat.messages == [] and chat.token_maps == []
        assert chat.answer(QUESTION, [picture()], max_tokens=8, temperature=0) == expected


def test_abort_in_the_middle_of_a_graph(vlms: Vlms) -> None:
    """llama_decode itself ends, and what it had is as before."""
    model = vlms.load("qwen2vl")
    with model.chat() as chat:
        chat.add_image(picture())
        items = list(chat._conversation.context.items)
        chat._conversation.context.request_stop()
        with pytest.raises(StoppedError):
            chat._conversation.context._text(list(range(5, 45)), True)
        assert chat._conversation.context.items == items
        # not every backend asks; between batches the context does so itself
        pointer, flag = (
            chat._conversation.context.pointer,
            ctypes.cast(chat._conversation.context._stop, ctypes.c_void_p),
        )
        llama_h.llama_set_abort_callback(pointer, ggml_h.ggml_abort_callback(0), None)
        with pytest.raises(StoppedError):
            chat._conversation.context.evaluate(list(range(5, 45)), True)
        llama_h.llama_set_abort_callback(pointer, ABORT, flag)
        assert chat._conversation.context.items == items
        chat._conversation.context.request_stop(False)
        stopped = chat.answer(QUESTION, max_tokens=8, temperature=0)
    with model.chat() as chat:
        chat.add_image(picture())
        assert chat.answer(QUESTION, max_tokens=8, temperature=0) == stopped


def test_closing_and_resetting_end_an_answer(model: Model) -> None:
    chat = model.chat()
    chat.add_image(picture())
    answer = chat.ask(QUESTION, grammar=LONG)
    next(answer)
    with pytest.raises(HalfVError, match="still answering"):
        chat.ask(NEXT)
    with pytest.raises(HalfVError, match="still answering"):
        chat.add_image(picture())
    chat.reset()
    assert list(answer) == [] and chat.messages == []
    answer = chat.ask(NEXT, grammar=LONG)
    next(answer)
    chat.close()
    assert list(answer) == []
    for use in (lambda: chat.ask(NEXT), lambda: chat.add_image(picture()), chat.reset, lambda: chat.token_maps):
        with pytest.raises(HalfVError, match="This chat is closed"):
            use()
    chat.stop()
    chat.close()
