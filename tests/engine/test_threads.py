"""Chats of one model in several threads: none waits for another one's picture, and none gets another's answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from halfv_cpp import llama_h, log

from halfv_edge import HalfVError, Model
from halfv_edge.engine.encoder import Encoder
from tests.support.vlm import LONG, NEXT, QUESTION, Vlms, picture

PATIENCE_SEC = 30


class SlowEncoder:
    """The real one, but each picture waits at its door."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.is_in = threading.Event()
        self.may_go_on = threading.Event()
        run = Encoder._run

        def wait_and_run(*args: Any) -> Any:
            self.is_in.set()
            assert self.may_go_on.wait(PATIENCE_SEC)
            return run(*args)

        monkeypatch.setattr(Encoder, "_run", wait_and_run)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowEncoder]:
    encoder = SlowEncoder(monkeypatch)
    yield encoder
    encoder.may_go_on.set()


def in_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


@pytest.mark.parametrize("ahead", [True, False], ids=["add_image", "ask"])
def test_a_chat_answers_while_the_picture_of_another_is_encoded(ahead: bool, vlms: Vlms, slow: SlowEncoder) -> None:
    model = vlms.load("llava", image_cache_mb=0)
    with model.chat() as one, model.chat() as two:
        work = (lambda: one.add_image(picture(1))) if ahead else lambda: one.answer(QUESTION, picture(1), max_tokens=2)
        encoding, _ = in_thread(work)
        assert slow.is_in.wait(PATIENCE_SEC)
        answering, found = in_thread(lambda: two.answer(NEXT, grammar=LONG))
        answering.join(PATIENCE_SEC)
        assert found and len(found[0]) == 60
        with model.chat() as three:  # and others may be opened and closed
            assert three.answer(NEXT, grammar=LONG, max_tokens=2)
        assert encoding.is_alive() and one.messages == []
        slow.may_go_on.set()
        encoding.join(PATIENCE_SEC)
        assert len(one.token_maps) == 1
        assert one.answer(NEXT, grammar=LONG, max_tokens=2) and one.stats.n_visual == 100


def test_a_closed_chat_stops_nobody(vlms: Vlms) -> None:
    """Its context is the next chat's."""
    model = vlms.load("llava", image_cache_mb=0)
    one = model.chat()
    former = one.ask(NEXT, grammar=LONG)
    next(former)
    context = one._conversation.context
    one.close()
    with model.chat() as two:
        assert two._conversation.context is context
        answer = two.ask(NEXT, grammar=LONG)
        next(answer)
        for stop in (one.stop, former.stop, former.close, one.close):
            stop()
        answer.read()
        assert len(answer.text) == 60 and answer.finish_reason == "stop"


def test_an_answer_is_closed_from_another_thread(vlms: Vlms) -> None:
    with vlms.load("llava", image_cache_mb=0).chat() as chat:
        answer = chat.ask(NEXT, grammar="root ::= [a-z]{900}")
        next(answer)
        reading, found = in_thread(lambda: list(answer))
        answer.close()
        reading.join(PATIENCE_SEC)
        assert not reading.is_alive() and isinstance(found[0], list)
        assert answer.finish_reason == "interrupted" and answer.text == chat.messages[-1]["content"]
        assert chat.answer(NEXT, grammar=LONG, max_tokens=2)


def test_what_llama_cpp_says_to_one_thread_is_not_anothers_error(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + bytes(40))
    log.capture()

    def fail() -> str:
        log.clear()
        params = llama_h.llama_model_default_params()
        assert not llama_h.llama_model_load_from_file(str(tmp_path / "no.gguf").encode(), params)
        return log.text()

    log.clear()
    thread, found = in_thread(fail)
    thread.join(PATIENCE_SEC)
    assert "no.gguf" in found[0] and log.text() == ""


def test_the_same_new_picture_in_two_chats_is_encoded_once(vlms: Vlms, slow: SlowEncoder) -> None:
    model = vlms.load("llava", image_cache_mb=1)
    before = model.encoder.n_encoded
    with model.chat() as one, model.chat() as two:
        threads = [in_thread(lambda chat=chat: chat.add_image(picture(31)))[0] for chat in (one, two)]
        assert slow.is_in.wait(PATIENCE_SEC)
        slow.may_go_on.set()
        for thread in threads:
            thread.join(PATIENCE_SEC)
        assert model.encoder.n_encoded == before + 1
        assert len(one.token_maps) == len(two.token_maps) == 1


def test_a_model_is_closed_while_a_picture_is_encoded(vlms: Vlms, slow: SlowEncoder) -> None:
    """It waits for the encoder, which cannot be interrupted, and for nothing else."""
    model = Model.load(vlms.path("llava"), n_ctx=512, n_threads=1)
    chat = model.chat()
    encoding, said = in_thread(lambda: chat.answer(QUESTION, picture(1), max_tokens=50, grammar=LONG))
    assert slow.is_in.wait(PATIENCE_SEC)
    closing, _ = in_thread(model.close)
    with pytest.raises(HalfVError, match="is closed"):
        while closing.is_alive():
            model.chat().close()
    slow.may_go_on.set()
    for thread in (encoding, closing):
        thread.join(PATIENCE_SEC)
        assert not thread.is_alive()
    assert said and (said[0] == "" or isinstance(said[0], HalfVError))
    assert not model.runtime.pointer and not model.encoder.pointer


def test_threads_that_do_everything_at_once(vlms: Vlms) -> None:
    """Chats are opened, given pictures, asked, stopped, dropped and closed at random; each answer is its own."""
    model = vlms.load("qwen2vl", image_cache_mb=0)
    alone = {}
    for seed in range(3):
        with model.chat() as chat:
            alone[seed] = chat.answer(QUESTION, picture(seed), max_tokens=6, temperature=0)
    wrong: list[Any] = []

    def live(number: int) -> None:
        chance = random.Random(number)
        try:
            for _ in range(8):
                seed = chance.randrange(3)
                chat = model.chat()
                way = chance.choice(("whole", "ahead", "stop", "drop", "reset"))
                if way == "ahead":
                    chat.add_image(picture(seed))
                    assert chat.answer(QUESTION, max_tokens=3, grammar=LONG)
                elif way == "whole":
                    assert chat.answer(QUESTION, picture(seed), max_tokens=6, temperature=0) == alone[seed]
                else:
                    answer = chat.ask(QUESTION, picture(seed), grammar=LONG)
                    next(answer)
                    {"stop": chat.stop, "drop": answer.close, "reset": chat.reset}[way]()
                    del answer
                if chance.random() < 0.5:
                    chat.close()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=live, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    assert wrong == []
    with model.chat() as chat:
        assert chat.answer(QUESTION, picture(0), max_tokens=6, temperature=0) == alone[0]
