"""The Python API from end to end, on tiny models with random vision encoders."""

from __future__ import annotations

import codecs
import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from client import Client
from PIL import Image
from tiny_mmproj import make_tiny_mmproj
from tiny_models import grid_positions, make_tiny

from halfv_edge import engine, native_log
from halfv_edge.encoder import Chunk
from halfv_edge.engine import Chat, Model
from halfv_edge.errors import HalfvError
from halfv_edge.kv import Context, n_cells
from halfv_edge.profile import Profile
from halfv_edge.tokens import draw_token_map

KINDS = {"llava": "llama", "qwen2vl": "qwen2vl"}
PROFILE = {
    "ivr.layer": 2,
    "ivr.keep": 0.5,
    "ivr.anchors": 0.2,
    "ssr.layer": 4,
    "ssr.update": 0.1,
    "ssr.rest": "dropped",
}
QUESTION, NEXT = "what is in the picture", "where is the cat"
LONG = "root ::= [a-z ]{60}"  # random models end an answer when they like
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# forgets earlier answers' first word, as templates that leave out thinking do
FORGETFUL = CHATML.replace("{{ m.content }}", "{{ m.content[3:] if m.role == 'assistant' else m.content }}")


def picture(seed: int = 0, width: int = 420, height: int = 300) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (5, 7, 3), np.uint8)).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model's path, with its encoder beside it; each made once."""
    root, made = tmp_path_factory.mktemp("vlm"), {}

    def make(kind: str, **meta: object) -> Path:
        key = repr((kind, meta))
        if key not in made:
            place = root / str(len(made))
            place.mkdir()
            made[key] = make_tiny(place / "model.gguf", KINDS.get(kind, "llama"), profile=PROFILE, **meta)
            make_tiny_mmproj(place / "mmproj-model.gguf", kind, n_embd=64)
        return made[key]

    return make


@pytest.fixture(scope="module")
def load(folder: Callable[..., Path]) -> Iterator[Callable[..., Model]]:
    """A model, each made once. Without flash attention and in f32, so that float noise decides nothing."""
    with contextlib.ExitStack() as stack:
        made: dict[str, Model] = {}

        def make(kind: str, meta: dict | None = None, **options: object) -> Model:
            key = repr((kind, meta, options))
            if key not in made:
                options = {"n_ctx": 1024, "n_threads": 1, "flash_attn": False, "kv_type": "f32"} | options
                made[key] = stack.enter_context(Model.load(folder(kind, **(meta or {})), **options))
            return made[key]

        yield make


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, load: Callable[..., Model]) -> Model:
    return load(request.param)


def retell(model: Model, items: list, n_tokens: int) -> list[int]:
    """Greedy tokens after these items, from an empty context, in one go."""
    fresh = Context(model._context().pointer, model.encoder)
    try:
        fresh.evaluate(items, output=True)
        tokens = []
        for _ in range(n_tokens):
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(fresh.pointer, -1), (native_vocab(model),))
            tokens.append(int(logits.argmax()))
            fresh.evaluate(tokens[-1:], output=True)
        return tokens
    finally:
        fresh.close()


def native_vocab(model: Model) -> int:
    return llama_cpp.llama_vocab_n_tokens(model.vocab)


def text_of(model: Model, tokens: list[int]) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ended = itertools.takewhile(lambda token: not llama_cpp.llama_vocab_is_eog(model.vocab, token), tokens)
    return "".join(decoder.decode(model.piece(token)) for token in ended) + decoder.decode(b"", final=True)


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


@pytest.mark.parametrize("kind", KINDS)
def test_exact_mode_is_what_a_plain_client_gets(
    kind: str, load: Callable[..., Model], folder: Callable[..., Path]
) -> None:
    """tests/client.py knows nothing of the engine; mtmd's embeddings are all that they share."""
    model = load(kind)
    for ahead in (False, True):
        with model.chat(mode="exact") as chat:
            if ahead:
                chat.add_image(picture())
            answer = chat.answer(QUESTION, [] if ahead else [picture()], max_tokens=12, temperature=0)
            kept = chat.token_maps[0].tiles[0].kept
            encoded = chat._pictures[0]
        before, after = ("USER: ", f"{QUESTION}\nASSISTANT:")
        if kind == "qwen2vl":
            before, after = "<|im_start|>user\n", f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        (chunk,) = encoded.chunks
        place = encoded.items.index(chunk)
        columns, rows = chunk.grid(model.encoder.is_mrope)
        with Client(folder(kind), n_ctx=1024) as client:
            start = [1, *model.tokenize(before), *encoded.items[:place]]
            client.text(start, logits_last=False)
            client.image(chunk.embd, grid_positions(len(start), rows, columns) if client.is_mrope else None)
            client.text([*encoded.items[place + 1 :], *model.tokenize(after)])
            tokens = []
            for _ in range(12):
                tokens.append(int(client.logits().argmax()))
                client.decode(tokens[-1])
        native_log.capture()  # the client took the log
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


def test_without_pruning_and_with_other_profiles(load: Callable[..., Model]) -> None:
    whole = load("qwen2vl", profile="off")
    less = load("qwen2vl", keep=0.2)
    preset = load("qwen2vl", profile="qwen2.5-vl-7b")
    given = {"ivr": {"layer": 1, "keep": 0.1, "anchors": 0.5}, "ssr": {"layer": 6, "update": 1.0, "rest": "frozen"}}
    mine = load("qwen2vl", profile=given)
    same = load("qwen2vl", profile=Profile(1, 0.1, 0.5, 6, 1.0, "frozen"))
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
            assert chat.token_maps[0].n_kept == chat.stats.n_kept
    assert chat.stats.dense_prefill_sec > chat.stats.prefill_sec / 2


def test_a_small_picture_stays_whole(load: Callable[..., Model]) -> None:
    with load("qwen2vl").chat() as chat:
        chat.answer(QUESTION, [picture(0, 60, 60)], max_tokens=2)
        assert chat.stats.n_kept == chat.stats.n_deep == chat.stats.n_visual == 9
        assert chat.token_maps[0].n_kept == 9


#
# conversations
#


def test_the_second_question_pays_for_itself_alone(model: Model) -> None:
    with model.chat() as chat:
        chat.add_image(picture(5))
        chat.answer(QUESTION, max_tokens=6)
        first, encoded = chat.stats, model.encoder.n_encoded
        held = len(chat._context.items)
        chat.answer(NEXT, max_tokens=6)
        second = chat.stats
        delta = [item for item in chat._context.items[held:] if not isinstance(item, int)]
        chat.answer("and the dog", max_tokens=6)
    assert model.encoder.n_encoded == encoded
    assert second.n_encoded == 0 and second.encode_sec == 0 and delta == []
    assert second.n_prompt < 60 < first.n_prompt
    anchors = int(first.n_kept * 0.2)
    assert first.n_kept < second.n_kept <= first.n_kept + anchors  # its own anchors came back
    assert second.n_kept < chat.stats.n_kept


@pytest.mark.parametrize("template", [None, CHATML, FORGETFUL], ids=["fallback", "chatml", "forgetful"])
def test_what_is_kept_is_what_would_be_evaluated_again(template: str | None, load: Callable[..., Model]) -> None:
    """Without pruning a context that grew turn by turn must be one that saw the same tokens at once."""
    for kind in KINDS:
        model = load(kind, {"tokenizer.chat_template": template} if template else None, profile="off")
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
            assert text_of(model, retell(model, prompted, chat.stats.n_generated)) == answer


def last_prompt(chat: Chat) -> list:
    """What the context held before the last answer."""
    n_evaluated = chat.stats.n_generated - len(chat._tail)
    return chat._context.items[: len(chat._context.items) - n_evaluated]


def detokenized(model: Model, items: list) -> str:
    return b"".join(model.piece(item) for item in items if isinstance(item, int)).decode("utf-8", "replace")


def test_a_template_that_forgets_reads_no_picture_again(load: Callable[..., Model]) -> None:
    model = load("qwen2vl", {"tokenizer.chat_template": FORGETFUL})
    with model.chat() as chat:
        chat.add_image(picture(1))
        chat.answer(QUESTION, max_tokens=20, grammar="root ::= [a-z ]{20}")
        chat.answer(NEXT, max_tokens=5)
        assert chat.stats.n_prompt < 80 < chat.stats.n_visual


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


def test_the_same_picture_is_encoded_once(load: Callable[..., Model]) -> None:
    model = load("llava")
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


def test_encoded_pictures_are_forgotten_in_turn(folder: Callable[..., Path]) -> None:
    with Model.load(folder("llava"), n_ctx=512, n_threads=1, image_cache_mb=0) as model:
        for count in (1, 2):
            with model.chat() as chat:
                chat.add_image(picture(0))
            assert model.encoder.n_encoded == count
        model.encoder.cache_bytes = 2 * 100 * 64 * 4
        for seed in (1, 2, 1, 3, 1, 2):  # 3 puts out 2, which was used longest ago
            with model.chat() as chat:
                chat.add_image(picture(seed))
        assert model.encoder.n_encoded == 2 + 4


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


def test_threads_share_a_model(load: Callable[..., Model]) -> None:
    model = load("qwen2vl")
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


#
# ending an answer
#


def finish(model: Model, chat: Chat, answer: str) -> None:
    """After an answer that was ended, the next one is what the same tokens at once would give."""
    assert chat.messages[-1]["content"] == answer
    reply = chat.answer(NEXT, max_tokens=8, temperature=0)
    prompted = last_prompt(chat)
    assert text_of(model, retell(model, prompted, chat.stats.n_generated)) == reply
    assert answer in detokenized(model, prompted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["close", "break", "stop", "stop string", "length"])
def test_an_answer_that_ends_early_leaves_a_usable_chat(kind: str, way: str, load: Callable[..., Model]) -> None:
    model = load(kind, profile="off")
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


def test_abort_in_the_middle_of_a_graph(load: Callable[..., Model]) -> None:
    """llama_decode itself ends, and what it had is as before."""
    model = load("qwen2vl")
    with model.chat() as chat:
        chat.add_image(picture())
        items = list(chat._context.items)
        chat._context.request_stop()
        with pytest.raises(engine_stopped()):
            chat._context._text(list(range(5, 45)), True)
        assert chat._context.items == items
        chat._context.request_stop(False)
        stopped = chat.answer(QUESTION, max_tokens=8, temperature=0)
    with model.chat() as chat:
        chat.add_image(picture())
        assert chat.answer(QUESTION, max_tokens=8, temperature=0) == stopped


def engine_stopped() -> type[Exception]:
    from halfv_edge.kv import StoppedError

    return StoppedError


def test_closing_and_resetting_end_an_answer(model: Model) -> None:
    chat = model.chat()
    chat.add_image(picture())
    answer = chat.ask(QUESTION, grammar=LONG)
    next(answer)
    with pytest.raises(HalfvError, match="still answering"):
        chat.ask(NEXT)
    with pytest.raises(HalfvError, match="still answering"):
        chat.add_image(picture())
    chat.reset()
    assert list(answer) == [] and chat.messages == []
    answer = chat.ask(NEXT, grammar=LONG)
    next(answer)
    chat.close()
    assert list(answer) == []
    for use in (lambda: chat.ask(NEXT), lambda: chat.add_image(picture()), chat.reset, lambda: chat.token_maps):
        with pytest.raises(HalfvError, match="This chat is closed"):
            use()
    chat.stop()
    chat.close()


#
# sampling
#


def test_json_schema(model: Model) -> None:
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["cat", "dog"]}, "many": {"type": "boolean"}},
        "required": ["animal", "many"],
        "additionalProperties": False,
    }
    for given in (schema, json.dumps(schema)):
        with model.chat() as chat:
            answer = json.loads(chat.answer(QUESTION, [picture()], json_schema=given, temperature=1.0, max_tokens=200))
        assert answer["animal"] in ("cat", "dog") and answer["many"] in (True, False)
        assert chat.stats.stopped == "end"


def test_no_piece_has_half_a_character(model: Model) -> None:
    wanted = "ä€😀 où"  # of two, three and four bytes, each of which is a token here
    with model.chat() as chat:
        pieces = list(chat.ask(QUESTION, [picture()], grammar=f'root ::= "{wanted}"'))
    assert "".join(pieces) == wanted and all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(wanted)
    with model.chat() as chat:  # cut within a character: said with the sign for that, once, at the end
        assert chat.answer(QUESTION, grammar=f'root ::= "{wanted}"', max_tokens=4) == "ä\ufffd"
        assert chat.answer(NEXT, grammar=f'root ::= "{wanted}"') == wanted


def test_stop_strings_across_tokens(model: Model) -> None:
    with model.chat() as chat:
        pieces = list(chat.ask(QUESTION, grammar='root ::= "abcabd the end"', stop=["abd", "nothing"]))
    assert "".join(pieces) == "abc" and chat.stats.stopped == "stop"
    with model.chat() as chat:  # what only looks like one comes late, but comes
        assert chat.answer(QUESTION, grammar='root ::= "xx ab"', stop="abc") == "xx ab"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"grammar": "root ::= ("}, "The grammar cannot be parsed"),
        ({"grammar": "nothing ::= [a-z]"}, "The grammar cannot be parsed"),
        ({"json_schema": "{"}, "The JSON schema cannot be used"),
        ({"json_schema": {"type": "nonsense"}}, "The JSON schema cannot be used"),
        ({"json_schema": {}, "grammar": LONG}, "follows one of them"),
        ({"temperature": -1.0}, r"temperature = -1\.0 is not valid"),
        ({"temperature": float("nan")}, "temperature = nan is not valid"),
        ({"top_p": 1.5}, r"top_p = 1\.5 is not valid: it must be between 0 and 1"),
        ({"min_p": -0.5}, r"min_p = -0\.5 is not valid"),
        ({"top_k": -4}, "top_k = -4 is not valid"),
        ({"seed": -1}, "seed = -1 is not valid"),
        ({"max_tokens": 0}, "max_tokens = 0 is not valid"),
    ],
)
def test_settings_that_cannot_be(options: dict, expected: str, load: Callable[..., Model]) -> None:
    with load("llava").chat() as chat:
        with pytest.raises(HalfvError, match=expected):
            chat.ask(QUESTION, [picture()], **options)
        assert chat.answer(QUESTION, [picture()], max_tokens=2, grammar=LONG)
        assert len(chat.token_maps) == 1


#
# room
#


def test_a_picture_too_large_for_the_context(folder: Callable[..., Path]) -> None:
    with Model.load(folder("qwen2vl"), n_ctx=256, n_threads=1) as model, model.chat() as chat:
        assert chat.answer("is the cat red", max_tokens=4, grammar=LONG)
        asked = list(chat.messages)
        for give in (lambda: chat.add_image(picture(0, 840, 600)), lambda: chat.ask(NEXT, [picture(0, 840, 600)])):
            with pytest.raises(HalfvError) as error:
                give()
            needed = int(str(error.value).split("context of ")[1].split()[0])
            assert 660 < needed < 740 and "n_ctx is 256" in str(error.value)
        assert chat.messages == asked and chat.token_maps == []
        chat.add_image(picture(0, 280, 280))
        assert chat.answer(QUESTION, max_tokens=4, grammar=LONG)
    with Model.load(folder("qwen2vl"), n_ctx=-(-needed // 256) * 256, n_threads=1) as model, model.chat() as chat:
        chat.answer("is the cat red", max_tokens=4, grammar=LONG)
        chat.add_image(picture(0, 840, 600))  # what it said is enough


def test_a_conversation_fills_its_context(folder: Callable[..., Path]) -> None:
    with Model.load(folder("llava"), n_ctx=256, n_threads=1) as model, model.chat() as chat:
        chat.add_image(picture())
        text = chat.answer(QUESTION, grammar="root ::= [a-z]+")
        assert chat.stats.stopped in ("length", "end")
        while chat.stats.stopped != "length":
            text = chat.answer("and", grammar="root ::= [a-z]{200}")
        assert n_cells(chat._context.items) <= 256
        with pytest.raises(HalfvError, match=r"This question needs a context of \d+ tokens, but n_ctx is 256"):
            chat.ask(NEXT)
        assert chat.messages[-1]["content"] == text
        chat.reset()
        assert chat.answer(NEXT, max_tokens=3, grammar=LONG)


#
# loading
#


def test_nothing_is_written_to_stderr(folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    with Model.load(folder("llava"), n_ctx=256, n_threads=1) as model, model.chat() as chat:
        chat.answer(QUESTION, [picture()], max_tokens=2)
    assert capfd.readouterr() == ("", "")
    Model.load(folder("llava"), n_ctx=256, n_threads=1, verbose=True).close()
    said = capfd.readouterr()
    assert "llama" in said.err and said.out == ""
    native_log.capture()


def test_the_encoder_is_found_beside_the_model(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "Cat-VL-2B-q4.gguf", "llama", profile=PROFILE)
    with pytest.raises(HalfvError, match=r"There is no vision encoder beside .*Cat-VL-2B-q4\.gguf"):
        Model.load(model)
    names = {"mmproj-Dog-VL-7B-f16.gguf": 128, "mmproj-Cat-VL-2B-f16.gguf": 64, "Cat-VL-2B-mmproj-q8.gguf": 64}
    for name, width in names.items():
        make_tiny_mmproj(tmp_path / name, "llava", n_embd=width)
    with Model.load(model, n_ctx=256, n_threads=1) as loaded:
        assert loaded.encoder.path.name == "mmproj-Cat-VL-2B-f16.gguf"
        assert "vicuna" in loaded.notes[0]


def test_what_cannot_be_loaded(tmp_path: Path, folder: Callable[..., Path]) -> None:
    model = folder("llava")
    other = make_tiny_mmproj(tmp_path / "mmproj-other.gguf", "llava", n_embd=128)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes()[:-5000])
    blind = tmp_path / "blind.gguf"
    writer = gguf.GGUFWriter(blind, "clip")
    writer.add_bool("clip.has_vision_encoder", False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    mine = model.with_name("mmproj-model.gguf")
    cases: list[tuple[tuple, dict, str]] = [
        ((tmp_path / "no.gguf",), {}, r"no\.gguf cannot be read: No such file"),
        ((mine,), {}, "is a vision projector"),
        ((model, tmp_path / "no.gguf"), {}, r"no\.gguf cannot be read: No such file"),
        ((model, model), {}, "is not a vision encoder: give the mmproj GGUF that belongs to model.gguf"),
        ((model, other), {}, "belongs to another model: it gives 128 numbers per token, model.gguf takes 64"),
        ((model, blind), {}, "cannot be loaded as a vision encoder"),
        ((damaged, mine), {}, r"damaged\.gguf cannot be loaded: .*(corrupted|incomplete)"),
        ((model,), {"n_ctx": 1 << 20}, "n_ctx = 1048576 is more than the 32768 tokens"),
        ((model,), {"n_ctx": 0}, "n_ctx = 0 is not valid: it must be at least 1"),
        ((model,), {"n_threads": -1}, "n_threads = -1 is not valid"),
        ((model,), {"image_max_tokens": 0}, "image_max_tokens = 0 is not valid"),
        ((model,), {"kv_type": "q9"}, "kv_type = 'q9' is not valid: it must be one of f32, f16"),
        ((model,), {"flash_attn": "no"}, "flash_attn = 'no' is not valid"),
        ((model,), {"kv_type": "q8_0"}, "No context can be made for model.gguf: .*block size 32"),
        ((model,), {"profile": "qwen2.5-vl-7b"}, "is for models of the architecture qwen2vl"),
        ((model,), {"profile": "llava"}, "There is no preset 'llava'"),
        ((model,), {"profile": tmp_path / "no.json"}, r"no\.json cannot be read"),
        ((model,), {"profile": {"ivr": {"layer": 2}}}, "halfv.ivr.keep is missing"),
        ((model,), {"keep": 1.5}, "halfv.ivr.keep = 1.5 is not valid"),
        ((model,), {"profile": "off", "keep": 0.5}, "needs a profile"),
    ]
    for args, options, expected in cases:
        with pytest.raises(HalfvError, match=expected) as error:
            Model.load(*args, **{"n_threads": 1} | options)
        assert "\n" not in str(error.value), str(error.value)


def test_too_little_memory_is_said(tmp_path: Path) -> None:
    """In a process that may not have the 6 GB that the context would take."""
    wide = make_tiny(tmp_path / "model.gguf", "llama", profile=PROFILE, **{"llama.context_length": 1 << 22})
    make_tiny_mmproj(tmp_path / "mmproj-model.gguf", "llava", n_embd=64)
    script = (
        "import resource, sys\nfrom halfv_edge.engine import Model\nfrom halfv_edge.errors import HalfvError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try:\n    Model.load(sys.argv[1], n_ctx=1 << 22, n_threads=1, kv_type='f32')\n"
        "except HalfvError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, wide], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("There is not enough memory for a context of 4194304 tokens: lower n_ctx")


def test_a_chat_needs_a_known_mode_and_an_open_model(folder: Callable[..., Path]) -> None:
    model = Model.load(folder("llava"), n_ctx=256, n_threads=1)
    with pytest.raises(HalfvError, match="mode = 'fast' is not valid"):
        model.chat(mode="fast")
    chat = model.chat()
    with pytest.raises(HalfvError, match="A int is not a question"):
        chat.ask(7)
    model.close()
    with pytest.raises(HalfvError, match=r"The model model\.gguf is closed"):
        model.chat()
    with pytest.raises(HalfvError, match="This chat is closed"):
        chat.ask(QUESTION)
    model.close()


def test_the_environment_switches_off(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFV", "off")
    with Model.load(folder("llava"), n_ctx=256, n_threads=1, keep=0.5) as model, model.chat() as chat:
        chat.answer(QUESTION, [picture()], max_tokens=2)
        assert model.profile_source == "environment" and chat.stats.n_kept == 100


#
# templates
#

TYPED = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}assistant:"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TYPED, "user:<0>what;assistant:"),
        (CHATML, "<|im_start|>user\n<0>what<|im_end|>\n<|im_start|>assistant\n"),
        ("{{ bos_token }}" + CHATML, "<|im_start|>user\n<0>what<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_templates(template: str, expected: str, load: Callable[..., Model]) -> None:
    model = load("llava", {"tokenizer.chat_template": template})
    with model.chat() as chat:
        chat.add_image(picture())
        assert chat.answer("what", max_tokens=2, grammar=LONG)
        bos = [item for item in chat._context.items if item == llama_cpp.llama_vocab_bos(model.vocab)]
        prompt = chat._marks.sub(r"<\1>", chat._known)
    assert len(bos) == 1
    assert prompt.startswith(expected)


def test_a_template_that_refuses(load: Callable[..., Model]) -> None:
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    model = load("llava", {"tokenizer.chat_template": refuses + "{{ m.content }}{% endfor %}:"})
    with model.chat("be brief") as chat, pytest.raises(HalfvError, match="refuses this conversation: no system here"):
        chat.ask(QUESTION)
    with model.chat() as chat:
        assert chat.answer(QUESTION, [picture()], max_tokens=2, grammar=LONG)


def test_text_cannot_pass_for_a_picture(model: Model) -> None:
    with model.chat() as chat:
        chat.answer("<__media__> <|picture-0|> what", [picture()], max_tokens=2)
        assert sum(isinstance(item, Chunk) for item in chat._context.items) == 1


#
# token maps
#


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(420, 300), (300, 420), (200, 200)])
def test_a_drawn_map_shows_what_was_kept(kind: str, size: tuple[int, int], load: Callable[..., Model]) -> None:
    model = load(kind)
    white = Image.new("RGB", size, "white")
    with model.chat() as chat:
        chat.answer(QUESTION, [white], max_tokens=1)
        (token_map,) = chat.token_maps
    (tile,) = token_map.tiles
    if kind == "qwen2vl":
        assert (tile.columns, tile.rows) == (round(size[0] / 28), round(size[1] / 28))
    else:
        assert (tile.columns, tile.rows) == (10, 10)
    drawn = draw_token_map(token_map, legend=False)
    left, top, right, bottom = tile.box
    for token in range(tile.n_tokens):
        row, column = divmod(token, tile.columns)
        x = left + (column + 0.5) / tile.columns * (right - left)
        y = top + (row + 0.5) / tile.rows * (bottom - top)
        if not (0.01 < x < 0.99 and 0.01 < y < 0.99):
            continue  # padding
        scale = max(size) and 640 / max(size)
        at = (16 + (x - min(left, 0)) * size[0] * scale, 16 + (y - min(top, 0)) * size[1] * scale)
        light = drawn.getpixel((round(at[0]), round(at[1])))[0]
        assert light == (255 if token in tile.kept else 56), (token, at)
    assert draw_token_map(token_map).height > drawn.height


@pytest.mark.parametrize(
    ("size", "grid"), [((420, 300), (2, 2)), ((600, 300), (2, 1)), ((300, 600), (1, 2)), ((100, 90), None)]
)
def test_a_tiled_picture_has_an_overview(size: tuple[int, int], grid: tuple | None, load: Callable[..., Model]) -> None:
    model = load("llava-next", n_ctx=1024)
    with model.chat() as chat:
        chat.answer(QUESTION, [picture(0, *size)], max_tokens=1)
        (token_map,) = chat.token_maps
        assert chat.stats.n_kept == token_map.n_kept
    n_tiles = grid[0] * grid[1] if grid else 1
    assert [tile.overview for tile in token_map.tiles] == [False] * n_tiles + [True] * bool(grid)
    assert all(len(tile.kept) == 50 for tile in token_map.tiles)  # each has its own quota
    if grid:
        boxes = [tile.box for tile in token_map.tiles if not tile.overview]
        assert len({(round(b[0], 6)) for b in boxes}) == grid[0] and len({round(b[1], 6) for b in boxes}) == grid[1]
    assert draw_token_map(token_map).width > size[0] * (1 + bool(grid))


def test_tiles_lie_where_the_encoder_cut_them(load: Callable[..., Model]) -> None:
    """Each tile's embeddings are those of that part of the picture alone."""
    plain, tiled = load("llava"), load("llava-next", n_ctx=1024)
    whole = picture(9, 280, 280)
    encoder = tiled.encoder

    def embeddings(model: Model, image: Image.Image) -> list[np.ndarray]:
        encoded = model.encoder.tokens(engine_picture(image))
        model.encoder.encode(encoded)
        return [chunk.embd for chunk in encoded.chunks]

    encoded = encoder.tokens(engine_picture(whole))
    encoder.encode(encoded)
    tiles = encoder.token_map(encoded, [(None, None)] * 5).tiles
    for tile, found in zip(tiles, embeddings(tiled, whole), strict=True):
        part = whole.crop(tuple(round(edge * 280) for edge in tile.box))
        np.testing.assert_allclose(found, embeddings(plain, part)[0], atol=1e-4)


def engine_picture(image: Image.Image):
    from halfv_edge.images import load

    return load(image)


#
# docs
#

EXAMPLES = (Path(__file__).parent.parent / "docs" / "python.md").read_text().split("```python\n")[1:]


@pytest.mark.parametrize(
    "example", [text.split("```")[0] for text in EXAMPLES], ids=lambda text: text.split("\n")[0][2:]
)
def test_examples_of_the_docs(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "_n_cores", lambda: 1)
    source = folder("qwen2vl")
    for name, file in (("model.gguf", source), ("mmproj-model.gguf", source.with_name("mmproj-model.gguf"))):
        (tmp_path / name).symlink_to(file)
    for seed, name in enumerate(("cat.jpg", "dog.png")):
        picture(seed).save(tmp_path / name)
    exec(compile(example, "docs/python.md", "exec"), {"__name__": "example"})
