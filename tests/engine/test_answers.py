"""How an answer ends, and what its reader has of it until then."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from halfv_edge import AnswerOptions, Chat, Model
from halfv_edge.engine.answer_text import AnswerText
from tests.support.vlm import LONG, NEXT, QUESTION, Vlms, picture


def test_why_an_answer_ended(model: Model) -> None:
    ways = {
        "length": {"grammar": LONG, "max_tokens": 5},
        "stop": {"grammar": 'root ::= "cat"'},
        "interrupted": {"grammar": LONG},
    }
    for reason, fields in ways.items():
        with model.chat() as chat:
            answer = chat.ask(QUESTION, picture(), **fields)
            assert (answer.finish_reason, answer.stats, answer.text) == (None, None, "")
            next(answer)
            assert answer.finish_reason is None and answer.stats is None
            if reason == "interrupted":
                answer.close()
            text = answer.read()
            assert answer.finish_reason == reason
            assert answer.stats == chat.stats and chat.stats.n_generated > 0
            assert text == answer.text == chat.messages[-1]["content"]
    with model.chat() as chat:
        answer = chat.ask(QUESTION, grammar='root ::= "abcd"', stop="c")
        assert (answer.read(), answer.finish_reason, answer.stats.stopped) == ("ab", "stop", "stop")


def test_a_question_that_was_not_asked_has_no_stats(model: Model) -> None:
    with model.chat() as chat:
        answer = chat.ask(QUESTION)
        answer.close()
        assert (answer.finish_reason, answer.stats, chat.messages) == ("interrupted", None, [])


def test_options_and_names_mean_the_same(model: Model) -> None:
    options = AnswerOptions(max_tokens=12, temperature=1.0, seed=3)
    said = []
    for given in ({"options": options}, {"max_tokens": 12, "temperature": 1.0, "seed": 3}):
        with model.chat() as chat:
            said.append(chat.answer(QUESTION, picture(), **given))
    with model.chat() as chat:
        said.append(chat.answer(QUESTION, picture(), options=options, max_tokens=2))
        assert chat.stats.n_generated == 2
        said.append(chat.answer(NEXT, seed=np.int64(3), max_tokens=np.int32(2), temperature=np.float32(1)))
    assert said[0] == said[1] and said[0].startswith(said[2]) and said[3]


@pytest.mark.parametrize("stop", [["the end"], ["e e", "the end"], ["end", "the end"], ["abd the"], ["d"]])
def test_no_part_of_a_stop_string_is_shown(stop: list[str], model: Model) -> None:
    """Each letter is a token here: the string is never in one, and what only looks like it comes later."""
    wanted = "abcabd the end of it"
    _, cut = min((at + len(text), at) for text in stop if (at := wanted.find(text)) >= 0)  # the first that is whole
    with model.chat() as chat:
        seen = ""
        for piece in chat.ask(QUESTION, grammar=f'root ::= "{wanted}"', stop=stop):
            seen += piece
            assert wanted[:cut].startswith(seen)
        assert seen == wanted[:cut] == chat.messages[-1]["content"]


def test_text_is_given_when_it_is_certain() -> None:
    text = AnswerText(["STOP", "OPEN"])
    pieces = []
    for raw in (b"a ST", b"O", b"R ", "ä".encode()[:1], "ä".encode()[1:], b" OP"):
        text.add(raw)
        pieces.append(text.take())
    assert pieces == ["a ", "", "STOR ", "", "ä", " "]
    text.add(b"", final=True)
    assert text.take(final=True) == "OP" and text.given == text.whole == "a STOR ä OP" and not text.is_stopped
    text = AnswerText(["STOP"])
    text.add(b"one ST")
    text.add(b"OP two STOP")
    assert text.take() == "one " and text.is_stopped and not text.is_tokenizable
    text = AnswerText([])
    text.add("ä".encode()[:1], final=True)
    assert text.take() == "\ufffd" and not text.is_tokenizable


def test_an_answer_forgotten_while_its_chat_is_busy_is_ended_by_the_next_question(vlms: Vlms) -> None:
    """A garbage collection may find it in any thread: waiting for the chat's lock there could be for ever."""
    with vlms.load("llava").chat() as chat:
        answer = chat.ask(QUESTION, grammar=LONG)
        first = next(answer)
        dropped = threading.Event()

        def forget(chat: Chat, held: list[object]) -> None:
            held.clear()
            gc.collect()
            dropped.set()

        held: list[object] = [answer]
        del answer
        with chat._conversation.lock:
            thread = threading.Thread(target=forget, args=(chat, held))
            thread.start()
            assert dropped.wait(10)
            assert chat._conversation.answering is not None  # the lock was not to be had
        thread.join()
        assert chat.answer(NEXT, max_tokens=2, grammar=LONG)
        assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
        assert chat.messages[1]["content"] == first
