"""One question and conversations, against a plain client of llama.cpp."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time

import numpy as np
import pytest
from halfv_cpp import log, mtmd_h

from halfv_edge.engine.context import n_cells
from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.model import Model
from halfv_edge.engine.turn_lock import TurnLock
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client
from tests.support.tiny_models import grid_positions
from tests.support.vlm import (
    CHATML,
    FORGETFUL,
    KINDS,
    LONG,
    NEXT,
    QUESTION,
    Vlms,
    detokenized,
    greedy,
    last_prompt,
    picture,
    retell,
    text_of,
)

#
# one question
#


def test_streaming_is_the_answer(model: Model) -> None:
    options = {"max_tokens": 24, "temperature": 0.9, "seed": 5}
    with model.chat() as chat:
        chat.add_image(picture())
        pieces = list(chat.ask(QUESTION, **options))
        assert len(pieces) > 3
    with model.chat() as chat:
        chat.add_image(picture())
        answer = chat.ask(QUESTION, **options)
        assert "".join(answer) == answer.text == "".join(pieces)
        assert chat.messages[-1] == {"role": "assistant", "content": answer.text}
    with model.chat() as chat:
        chat.add_image(picture())
        assert chat.answer(QUESTION, **options) == answer.text


def test_the_seed_decides(model: Model) -> None:
    def say(**options: object) -> str:
        with model.chat(mode="exact") as chat:
            return chat.answer(QUESTION, [picture()], max_tokens=24, **options)

    assert say(temperature=1.0, seed=1) == say(temperature=1.0, seed=1) != say(temperature=1.0, seed=2)
    assert len({say(temperature=1.0) for _ in range(4)}) > 1
    assert say(temperature=0) == say(temperature=0, seed=3)


def test_the_model_may_have_a_seed(vlms: Vlms) -> None:
    model = vlms.load("llava", seed=5)
    said = []
    for options in ({}, {}, {"seed": 5}, {"seed": 6}):
        with model.chat() as chat:
            said.append(chat.answer(QUESTION, temperature=1.0, max_tokens=24, **options))
    assert said[0] == said[1] == said[2] != said[3]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_mode_is_what_a_plain_client_gets(kind: str, vlms: Vlms) -> None:
    """halfv_edge/testing/client.py knows nothing of the engine; mtmd's embeddings are all that they share."""
    model = vlms.load(kind)
    for ahead in (False, True):
        with model.chat(mode="exact") as chat:
            if ahead:
                chat.add_image(picture())
            answer = chat.answer(QUESTION, [] if ahead else [picture()], max_tokens=12, temperature=0)
            kept = chat.token_maps[0].tiles[0].kept
            (encoded,) = chat._conversation.pictures.values()
        before, after = ("USER: ", f"{QUESTION}\nASSISTANT:")
        if kind == "qwen2vl":
            before, after = "<|im_start|>user\n", f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        (chunk,) = encoded.chunks
        place = encoded.items.index(chunk)
        columns, rows = chunk.grid(model.encoder.is_mrope)
        with Client(vlms.path(kind), n_ctx=1024) as client:
            start = [1, *model.tokenize(before), *encoded.items[:place]]
            client.text(start, logits_last=False)
            client.image(chunk.embd, grid_positions(len(start), rows, columns) if client.is_mrope else None)
            client.text([*encoded.items[place + 1 :], *model.tokenize(after)])
            tokens = greedy(client, 12)
        log.capture()  # the client took the log
        assert answer == text_of(model, tokens)
        assert len(kept) == chunk.n_tokens // 2


def test_stats(model: Model) -> None:
    with model.chat() as chat:
        chat.add_image(picture(3))
        answer = chat.answer(QUESTION, max_tokens=7, grammar=LONG)
        stats = chat.stats
        (token_map,) = chat.token_maps
    assert answer and stats.n_generated == 7 and stats.stopped == "length"
    assert stats.n_visual == token_map.n_visual == {"llama": 100, "qwen2vl": 165}[architecture(model)]
    assert stats.n_kept == token_map.n_kept == stats.n_visual // 2
    assert stats.n_deep == token_map.n_deep == stats.n_visual // 10
    assert stats.n_encoded == 1 and stats.encode_sec > 0 and stats.tokens_per_sec > 0
    assert stats.n_prompt > stats.n_visual
    assert stats.ttft_sec > 0 and stats.ahead_sec > 0 and 0 < stats.select_sec < stats.prefill_sec
    assert stats.flops_dense > 1.3 * stats.flops_spent > 0
    expected = (stats.prefill_sec - stats.select_sec) * stats.flops_dense / stats.flops_spent
    assert stats.dense_prefill_sec == pytest.approx(expected)


def architecture(model: Model) -> str:
    return "qwen2vl" if model.encoder.is_mrope else "llama"


def test_the_picture_is_ready_before_the_question(model: Model) -> None:
    with model.chat() as chat:
        chat.add_image(picture(4))
        (ready,) = chat.token_maps
        chat.answer(QUESTION, max_tokens=2)
        (asked,) = chat.token_maps
        assert chat.stats.n_prompt - asked.n_visual < 60
    assert 0 < ready.n_kept < asked.n_kept
    assert set(ready.tiles[0].kept) < set(asked.tiles[0].kept)
    with model.chat(mode="exact") as chat:
        chat.add_image(picture(4))
        assert chat.token_maps[0].n_kept == 0  # waits for the question
        chat.answer(QUESTION, max_tokens=2)
        assert chat.token_maps[0].n_kept == asked.n_kept


def test_without_pruning_and_with_other_profiles(vlms: Vlms) -> None:
    whole = vlms.load("qwen2vl", profile="off")
    less = vlms.load("qwen2vl", keep=0.2)
    preset = vlms.load("qwen2vl", profile="qwen2.5-vl-7b")
    given = {"ivr": {"layer": 1, "keep": 0.1, "anchors": 0.5}, "ssr": {"layer": 6, "update": 1.0, "rest": "frozen"}}
    mine = vlms.load("qwen2vl", profile=given)
    same = vlms.load("qwen2vl", profile=Profile(1, 0.1, 0.5, 6, 1.0, "frozen"))
    for model, share, source in (
        (whole, 1.0, "flag"),
        (less, 0.2, "gguf"),
        (preset, 0.25, "flag"),
        (mine, 0.1, "flag"),
        (same, 0.1, "flag"),
    ):
        with model.chat() as chat:
            chat.answer(QUESTION, [picture()], max_tokens=2)
            assert chat.stats.n_kept == int(chat.stats.n_visual * share)
            assert model.profile_source == source
            assert (chat.stats.flops_spent > 0) == (model is not whole)
            assert chat.stats.unpruned == ("off" if model is whole else "")
            assert chat.token_maps[0].n_kept == chat.stats.n_kept
    assert chat.stats.dense_prefill_sec > chat.stats.prefill_sec / 2


def test_a_small_picture_stays_whole(vlms: Vlms) -> None:
    with vlms.load("qwen2vl").chat() as chat:
        chat.answer(QUESTION, [picture(0, 60, 60)], max_tokens=2)
        assert chat.stats.n_kept == chat.stats.n_deep == chat.stats.n_visual == 9
        assert chat.stats.unpruned == "small"
        assert chat.token_maps[0].n_kept == 9


#
# conversations
#


def test_the_second_question_pays_for_itself_alone(model: Model) -> None:
    with model.chat() as chat:
        chat.add_image(picture(5))
        chat.answer(QUESTION, max_tokens=6)
        first, encoded = chat.stats, model.encoder.n_encoded
        held = len(chat._conversation.context.items)
        chat.answer(NEXT, max_tokens=6)
        second = chat.stats
        delta = [item for item in chat._conversation.context.items[held:] if not isinstance(item, int)]
        chat.answer("and the dog", max_tokens=6)
    assert model.encoder.n_encoded == encoded
    assert second.n_encoded == 0 and second.encode_sec == 0 and delta == []
    assert second.n_prompt < 60 < first.n_prompt
    anchors = int(first.n_kept * 0.2)
    assert first.n_kept < second.n_kept <= first.n_kept + anchors  # its own anchors came back
    assert second.n_kept < chat.stats.n_kept


@pytest.mark.parametrize("template", [None, CHATML, FORGETFUL], ids=["fallback", "chatml", "forgetful"])
def test_what_is_kept_is_what_would_be_evaluated_again(template: str | None, vlms: Vlms) -> None:
    """Without pruning a context that grew turn by turn must be one that saw the same tokens at once."""
    for kind in KINDS:
        model = vlms.load(kind, {"tokenizer.chat_template": template} if template else None, profile="off")
        with model.chat("is the dog red") as chat:
            chat.add_image(picture(1))
            chat.answer(QUESTION, max_tokens=9, grammar="root ::= [a-z ]+")
            chat.add_image(picture(2))
            chat.answer(NEXT, max_tokens=9, grammar="root ::= [a-z ]+")
            encoded = model.encoder.n_encoded
            answer = chat.answer("and the dog", max_tokens=9, temperature=0)
            prompted = last_prompt(chat)
            assert model.encoder.n_encoded == encoded
            assert sum(isinstance(item, Chunk) for item in prompted) == 2
            told = chat.messages[2]["content"]
            if template is FORGETFUL:
                assert told not in detokenized(model, prompted) and told[3:] in detokenized(model, prompted)
            assert retell(model, prompted, chat.stats.n_generated) == answer


def test_a_template_that_forgets_reads_no_picture_again(vlms: Vlms) -> None:
    model = vlms.load("qwen2vl", {"tokenizer.chat_template": FORGETFUL})
    with model.chat() as chat:
        chat.add_image(picture(1))
        chat.answer(QUESTION, max_tokens=20, grammar="root ::= [a-z ]{20}")
        chat.answer(NEXT, max_tokens=5)
        assert chat.stats.n_prompt < 80 < chat.stats.n_visual


@pytest.mark.parametrize("template", [CHATML, FORGETFUL], ids=["chatml", "forgetful"])
def test_whatever_happens_the_books_are_right(template: str, vlms: Vlms) -> None:
    """Random turns, half of them cut short: what the chat believes is what the native memory holds."""
    for kind, seed in itertools.product(KINDS, range(3)):
        rng = np.random.default_rng(seed)
        with vlms.load(kind, {"tokenizer.chat_template": template}).chat(mode=["prepare", "exact"][seed % 2]) as chat:
            n_pictures = 0
            for turn in range(8):
                room = chat._conversation.context.n_ctx - chat._conversation.context.n_cells > 400
                given = [picture(int(rng.integers(4))) for _ in range(rng.integers(3))] if room else []
                ahead = bool(rng.integers(2))
                for image in given if ahead else []:
                    chat.add_image(image)
                answer = chat.ask(
                    "what " * (turn + 1), () if ahead else given, max_tokens=12, grammar="root ::= [a-z]+"
                )
                started = bool(list(itertools.islice(answer, int(rng.integers(14)))))
                answer.close()
                n_pictures += len(given) if ahead or started else 0
                native = chat._conversation.context.stats()
                assert (
                    chat._conversation.context.n_cells
                    == n_cells(chat._conversation.context.items)
                    == native["kv_cells"][0]
                )
                held = [item for item in chat._conversation.context.items if isinstance(item, Chunk)]
                assert native["n_images"] == len(held) and native["n_visual"] == n_cells(held)
                assert len(chat.token_maps) == n_pictures
                if started:
                    assert native["n_images"] == n_pictures and native["n_pending"] == 0
                    assert sum(m.n_kept for m in chat.token_maps) == native["n_kept"] == chat.stats.n_kept


def test_prompts_are_tokenized_as_mtmd_does(model: Model) -> None:
    question, image = "what is in the picture, dog?", picture()
    with model.chat("the cat") as chat:
        chat.answer(question, [image], max_tokens=1)
        prompt = last_prompt(chat)
        text = model.runtime.template.render(
            [
                {**message, "content": chat._conversation.marks.sub("<__media__>", message["content"])}
                for message in chat._conversation.rendered[:2]
            ]
        ).encode()
    chunks = mtmd_h.mtmd_input_chunks_init()
    bitmap = mtmd_h.mtmd_bitmap_init(*image.size, (ctypes.c_uint8 * (420 * 300 * 3)).from_buffer_copy(image.tobytes()))
    given = mtmd_h.mtmd_input_text(text, len(text), True, True)
    bitmaps = (ctypes.c_void_p * 1)(bitmap)
    assert mtmd_h.mtmd_tokenize(model.encoder.pointer, chunks, ctypes.byref(given), bitmaps, 1) == 0
    expected = list(model.encoder._items(chunks))
    mtmd_h.mtmd_bitmap_free(bitmap)
    mtmd_h.mtmd_input_chunks_free(chunks)
    plain = [item if isinstance(item, int) else item.n_tokens for item in prompt]
    assert plain == [item if isinstance(item, int) else item.n_tokens for item in expected]


def test_text_goes_on_without_a_space(vlms: Vlms) -> None:
    with vlms.load("llava").chat() as chat:
        for text in ("the cat", " the cat", "\nthe", "x", "<|im_end|>the"):
            tokens = chat._conversation.continued(text)
            assert b"".join(chat.runtime.piece(token, special=True) for token in tokens).decode() in (
                text,
                text.replace(">the", "> the"),  # the first word after a special token gets one, as in llama.cpp
            )


def test_pictures_in_later_turns(model: Model) -> None:
    with model.chat() as chat:
        assert chat.answer("is the cat red", max_tokens=5, grammar=LONG)
        assert chat.stats.n_visual == 0
        chat.add_image(picture(1))
        chat.answer(QUESTION, max_tokens=5)
        one = chat.stats.n_visual
        chat.answer("and in the picture", [picture(2), picture(3, 300, 420)], max_tokens=5)
        assert len(chat.token_maps) == 3
        assert chat.stats.n_visual == 3 * one and chat.stats.n_encoded == 2
        sizes = [tile_map.n_kept for tile_map in chat.token_maps]
        assert sizes[0] > one // 2 and sizes[1:] == [one // 2] * 2  # the first was topped up


def test_the_same_picture_is_encoded_once(vlms: Vlms) -> None:
    model = vlms.load("llava")
    before = model.encoder.n_encoded
    image = picture(77)
    texts = []
    for _ in range(2):
        with model.chat() as chat:
            chat.add_image(np.asarray(image))
            texts.append(chat.answer(QUESTION, max_tokens=8, temperature=0))
    assert model.encoder.n_encoded == before + 1
    assert chat.stats.encode_sec == 0 and texts[0] == texts[1]
    with model.chat() as chat:  # twice in one conversation
        chat.answer(QUESTION, [image, image], max_tokens=4)
        assert chat.stats.n_encoded == 0 and chat.stats.n_visual == 200
        assert [m.n_kept for m in chat.token_maps] == [50, 50]


def test_encoded_pictures_are_forgotten_in_turn(vlms: Vlms) -> None:
    with Model.load(vlms.path("llava"), n_ctx=512, n_threads=1, image_cache_mb=0) as model:
        for count in (1, 2):
            with model.chat() as chat:
                chat.add_image(picture(0))
            assert model.encoder.n_encoded == count
        model.encoder.cache_bytes = 2 * 100 * 64 * 4
        for seed in (1, 2, 1, 3, 1, 2):  # 3 puts out 2, which was used longest ago
            with model.chat() as chat:
                chat.add_image(picture(seed))
        assert model.encoder.n_encoded == 2 + 4


def test_a_single_picture_needs_no_list(vlms: Vlms) -> None:
    for source in (picture(), np.asarray(picture()), picture().tobytes("jpeg", "RGB")):
        with vlms.load("llava").chat() as chat:
            chat.answer(QUESTION, source, max_tokens=1)
            assert len(chat.token_maps) == 1 and chat.n_used > 100


def test_reset(model: Model) -> None:
    with model.chat("the cat") as chat:
        chat.add_image(picture())
        first = chat.answer(QUESTION, max_tokens=8, temperature=0)
        chat.reset()
        assert chat.token_maps == [] and chat.messages == [{"role": "system", "content": "the cat"}]
        chat.add_image(picture())
        assert chat.answer(QUESTION, max_tokens=8, temperature=0) == first
        assert chat.stats.n_prompt > chat.stats.n_visual


def test_two_chats_do_not_mix(model: Model) -> None:
    def alone(seed: int) -> str:
        with model.chat() as chat:
            chat.add_image(picture(seed))
            return chat.answer(QUESTION, max_tokens=16, temperature=0)

    expected = [alone(1), alone(2)]
    with model.chat() as one, model.chat() as two:
        one.add_image(picture(1))
        two.add_image(picture(2))
        answers = [chat.ask(QUESTION, max_tokens=16, temperature=0) for chat in (one, two)]
        for _ in itertools.zip_longest(*answers):
            pass
        assert [answer.text for answer in answers] == expected


def test_threads_share_a_model(vlms: Vlms) -> None:
    model = vlms.load("qwen2vl")
    expected, found = {}, {}
    for seed in range(3):
        with model.chat() as chat:
            expected[seed] = chat.answer(QUESTION, [picture(seed)], max_tokens=12, temperature=0)

    def talk(seed: int) -> None:
        with model.chat() as chat:
            found[seed] = chat.answer(QUESTION, [picture(seed)], max_tokens=12, temperature=0)

    threads = [threading.Thread(target=talk, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == expected


def test_whoever_waits_for_the_lock_comes_next() -> None:
    """With threading.RLock some 200 of these 300 turns go to another thread than the one before, or far fewer."""
    lock, turns, ready = TurnLock(), [], threading.Barrier(3)

    def take(number: int) -> None:
        ready.wait()
        for _ in range(100):
            with lock, lock:  # reentrant
                time.sleep(0.001)
                turns.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(turns) == 300
    assert sum(one != other for one, other in itertools.pairwise(turns)) > 250
