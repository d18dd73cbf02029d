"""The Python API: settings, room, loading, templates; what cannot be is one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import halfv_cpp
import pytest
from halfv_cpp import llama_h

from halfv_edge.engine.chat import Chat
from halfv_edge.engine.context import n_cells
from halfv_edge.engine.encoder import Chunk, Encoder
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from tests.support.tiny_mmproj import make_tiny_mmproj
from tests.support.tiny_models import make_tiny
from tests.support.vlm import CHATML, KINDS, LONG, NEXT, PROFILE, QUESTION, Vlms, picture

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
        ({"max_tokens": "9"}, "max_tokens = '9' is not valid: it must be a whole number, at least 1"),
        ({"temperature": "hot"}, "temperature = 'hot' is not valid: it must be a number, at least 0"),
        ({"top_k": None}, "top_k = None is not valid"),
        ({"seed": 0xFFFFFFFF}, "seed = 4294967295 is not valid: it must be from 0 to 4294967294"),
        ({"stop": ["a", ""]}, r"stop = \['a', ''\] is not valid: it must be a text, or a list of texts, none of them"),
        ({"stop": b"a"}, "stop = b'a' is not valid"),
        ({"stop": 7}, "stop = 7 is not valid"),
        ({"grammar": 7}, "grammar = 7 is not valid"),
        ({"grammar": 'root ::= "a\0"'}, "The grammar cannot be parsed"),
    ],
)
def test_settings_that_cannot_be(options: dict, expected: str, vlms: Vlms) -> None:
    with vlms.load("llava").chat() as chat:
        with pytest.raises(HalfVError, match=expected):
            chat.ask(QUESTION, [picture()], **options)
        assert chat.answer(QUESTION, [picture()], max_tokens=2, grammar=LONG)
        assert len(chat.token_maps) == 1


#
# room
#


def test_a_picture_too_large_for_the_context(vlms: Vlms) -> None:
    with Model.load(vlms.path("qwen2vl"), n_ctx=256, n_threads=1) as model, model.chat() as chat:
        assert chat.answer("is the cat red", max_tokens=4, grammar=LONG)
        asked = list(chat.messages)
        for give in (lambda: chat.add_image(picture(0, 840, 600)), lambda: chat.ask(NEXT, [picture(0, 840, 600)])):
            with pytest.raises(HalfVError) as error:
                give()
            needed = int(str(error.value).split("context of ")[1].split()[0])
            assert 660 < needed < 740 and "this one has 256: load with n_ctx=2048" in str(error.value)
        assert chat.messages == asked and chat.token_maps == []
        chat.add_image(picture(0, 280, 280))
        assert chat.answer(QUESTION, max_tokens=4, grammar=LONG)
    with Model.load(vlms.path("qwen2vl"), n_ctx=-(-needed // 256) * 256, n_threads=1) as model, model.chat() as chat:
        chat.answer("is the cat red", max_tokens=4, grammar=LONG)
        chat.add_image(picture(0, 840, 600))  # what it said is enough


def test_a_conversation_fills_its_context(vlms: Vlms) -> None:
    with Model.load(vlms.path("llava"), n_ctx=256, n_threads=1) as model, model.chat() as chat:
        chat.add_image(picture())
        text = chat.answer(QUESTION, grammar="root ::= [a-z]+")
        assert chat.stats.stopped in ("length", "end")
        while chat.stats.stopped != "length":
            text = chat.answer("and", grammar="root ::= [a-z]{200}")
        assert n_cells(chat._conversation.context.items) <= 256
        with pytest.raises(
            HalfVError,
            match=r"This question needs a context of \d+ tokens, and this one has 256: load with n_ctx=",
        ):
            chat.ask(NEXT)
        assert chat.messages[-1]["content"] == text
        chat.reset()
        assert chat.answer(NEXT, max_tokens=3, grammar=LONG)


def test_text_fills_what_pictures_leave_it(vlms: Vlms) -> None:
    with pytest.raises(HalfVError, match=r"^visual_share = 1\.5 is not valid: it must be between 0 and 1"):
        Model.load(vlms.path("llava"), visual_share=1.5)
    with Model.load(vlms.path("llava"), n_ctx=1024, n_threads=1, visual_share=1) as model, model.chat() as chat:
        assert chat.answer(QUESTION, [picture()], max_tokens=2, grammar=LONG)
        full = r"^Text and kept visual tokens fill .*: start over, or load .* visual_share.* n_ctx"
        with pytest.raises(HalfVError, match=full):
            chat.answer("and " * 250, max_tokens=2, grammar=LONG)
        chat.reset()
        assert chat.answer(NEXT, [picture()], max_tokens=2, grammar=LONG)
        chat.reset()
        assert chat.answer("and " * 100, grammar="root ::= [a-z ]{800}")
        assert chat.stats.stopped == "length" and chat.n_used < chat.n_ctx


def stage_sizes(chat: Chat) -> list[int]:
    return halfv_cpp.stats(chat._conversation.context.pointer)["kv_size"]


@pytest.mark.parametrize("mode", ["prepare", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_never_lacks_the_room_that_pictures_may_take(vlms: Vlms, kind: str, mode: str) -> None:
    """A chat begins with small deep stages and moves to full ones when its text needs them."""
    model, roomy = vlms.load(kind), vlms.load(kind, visual_share=0)
    turns = [(QUESTION, [picture()]), ("and " * 380, []), (NEXT, [picture(1)]), ("and " * 40, [])]
    found = []
    for loaded in (model, roomy):
        with loaded.chat(mode=mode) as chat:
            sizes = [stage_sizes(chat)]
            texts = []
            for question, pictures in turns:
                for one in pictures:
                    chat.add_image(one)
                texts.append(chat.answer(question, temperature=0, max_tokens=30, grammar=LONG))
                sizes.append(stage_sizes(chat))
            found.append((texts, chat.n_used, [(m.tiles[0].kept, m.tiles[0].deep) for m in chat.token_maps]))
        if loaded is model:
            assert sizes[0][0] == sizes[-1][0] == sizes[-1][2] == 1024 > sizes[0][1] > sizes[0][2]
    assert found[0] == found[1]
    with model.chat() as chat:  # the next one begins small again
        assert stage_sizes(chat)[2] < 1024


#
# loading
#


def test_nothing_is_written_to_stderr(vlms: Vlms, capfd: pytest.CaptureFixture[str]) -> None:
    with Model.load(vlms.path("llava"), n_ctx=256, n_threads=1) as model, model.chat() as chat:
        chat.answer(QUESTION, [picture()], max_tokens=2)
    assert capfd.readouterr() == ("", "")
    Model.load(vlms.path("llava"), n_ctx=256, n_threads=1, verbose=True).close()
    said = capfd.readouterr()
    assert "llama" in said.err and said.out == ""
    Model.load(vlms.path("llava"), n_ctx=256, n_threads=1).close()
    assert capfd.readouterr() == ("", "")


def test_a_quiet_model_beside_one_that_talks(vlms: Vlms, capfd: pytest.CaptureFixture[str]) -> None:
    """There is one log per process: it is shown as long as one open model wants it, whichever came last."""
    talking = Model.load(vlms.path("llava"), n_ctx=256, n_threads=1, verbose=True)
    with Model.load(vlms.path("llava"), n_ctx=256, n_threads=1) as quiet:
        capfd.readouterr()
        with talking.chat(), talking.chat():  # one of them needs a context that is not there yet
            pass
        assert "llama" in capfd.readouterr().err
        with pytest.raises(HalfVError):
            Model.load(vlms.path("llava"), n_ctx=1 << 30, verbose=True)  # what cannot be loaded does not talk for ever
        talking.close()
        capfd.readouterr()
        with quiet.chat(), quiet.chat():
            pass
        assert capfd.readouterr() == ("", "")


def test_the_encoder_is_found_beside_the_model(tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "Cat-VL-2B-q4.gguf", "llama", profile=PROFILE)
    with pytest.raises(HalfVError, match=r"There is no vision encoder beside .*Cat-VL-2B-q4\.gguf"):
        Model.load(model)
    names = {"mmproj-Dog-VL-7B-f16.gguf": 128, "mmproj-Cat-VL-2B-f16.gguf": 64, "Cat-VL-2B-mmproj-q8.gguf": 64}
    for name, width in names.items():
        make_tiny_mmproj(tmp_path / name, "llava", n_embd=width)
    with Model.load(model, n_ctx=256, n_threads=1) as loaded:
        assert loaded.encoder.path.name == "mmproj-Cat-VL-2B-f16.gguf"
        assert "vicuna" in loaded.notes[0]


def test_what_cannot_be_loaded(tmp_path: Path, vlms: Vlms) -> None:
    model = vlms.path("llava")
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
        ((tmp_path / "no.gguf",), {}, r"no\.gguf does not exist"),
        ((mine,), {}, "is a vision encoder: give it with mmproj"),
        ((model, tmp_path / "no.gguf"), {}, r"no\.gguf does not exist"),
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
        ((model,), {"keep": 1.5}, "keep = 1.5 is not valid: it must be above 0 and at most 1"),
        ((model,), {"profile": "off", "keep": 0.5}, "needs a profile"),
    ]
    for args, options, expected in cases:
        with pytest.raises(HalfVError, match=expected) as error:
            Model.load(*args, **{"n_threads": 1} | options)
        assert "\n" not in str(error.value), str(error.value)


def test_too_little_memory_is_said(tmp_path: Path) -> None:
    """In a process that may not have the 6 GB that the context would take."""
    wide = make_tiny(tmp_path / "model.gguf", "llama", profile=PROFILE, **{"llama.context_length": 1 << 22})
    make_tiny_mmproj(tmp_path / "mmproj-model.gguf", "llava", n_embd=64)
    script = (
        "import resource, sys\nfrom halfv_edge.engine.model import Model\nfrom halfv_edge.errors import HalfVError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "try:\n    Model.load(sys.argv[1], n_ctx=1 << 22, n_threads=1, kv_type='f32')\n"
        "except HalfVError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, wide], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("There is not enough memory for a context of 4194304 tokens: lower n_ctx")


def test_a_chat_needs_a_known_mode_and_an_open_model(vlms: Vlms) -> None:
    model = Model.load(vlms.path("llava"), n_ctx=256, n_threads=1)
    with pytest.raises(HalfVError, match="mode = 'fast' is not valid"):
        model.chat(mode="fast")
    chat = model.chat()
    with pytest.raises(HalfVError, match="question = 7 is not valid: it must be text, or a list of parts"):
        chat.ask(7)
    model.close()
    with pytest.raises(HalfVError, match=r"The model model\.gguf is closed"):
        model.chat()
    with pytest.raises(HalfVError, match="This chat is closed"):
        chat.ask(QUESTION)
    model.close()


def test_the_environment_switches_off(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFV", "off")
    with Model.load(vlms.path("llava"), n_ctx=256, n_threads=1, keep=0.5) as model, model.chat() as chat:
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
def test_templates(template: str, expected: str, vlms: Vlms) -> None:
    model = vlms.load("llava", {"tokenizer.chat_template": template})
    with model.chat() as chat:
        chat.add_image(picture())
        assert chat.answer("what", max_tokens=2, grammar=LONG)
        bos = [
            item for item in chat._conversation.context.items if item == llama_h.llama_vocab_bos(model.runtime.vocab)
        ]
        prompt = chat._conversation.marks.sub(r"<\1>", chat._conversation.checkpoints[-1].text)
    assert len(bos) == 1
    assert prompt.startswith(expected)


def test_a_template_that_refuses(vlms: Vlms) -> None:
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    model = vlms.load("llava", {"tokenizer.chat_template": refuses + "{{ m.content }}{% endfor %}:"})
    with model.chat("be brief") as chat, pytest.raises(HalfVError, match="refuses this conversation: no system here"):
        chat.ask(QUESTION)
    with model.chat() as chat:
        assert chat.answer(QUESTION, [picture()], max_tokens=2, grammar=LONG)


def test_text_cannot_pass_for_a_picture(model: Model) -> None:
    with model.chat() as chat:
        chat.answer("<__media__> <|picture-0|> what", [picture()], max_tokens=2)
        assert sum(isinstance(item, Chunk) for item in chat._conversation.context.items) == 1


def test_a_picture_that_must_be_one_batch(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "non_causal", True)
    model = vlms.load("llava", n_batch=64)
    with model.chat() as chat:
        with pytest.raises(HalfVError, match=r"picture of 100 tokens does not fit into one batch of 64.*n_batch=100"):
            chat.add_image(picture())
        assert chat.answer(QUESTION, max_tokens=2)  # it goes on


def test_the_same_new_picture_twice_is_encoded_once(vlms: Vlms) -> None:
    model = vlms.load("llava", image_cache_mb=1)
    with model.chat() as chat:
        chat.answer(QUESTION, [picture(9), picture(9)], max_tokens=2)
        assert (chat.stats.n_encoded, chat.stats.n_visual) == (1, 200)
        first, second = chat.token_maps
        assert first.n_visual == second.n_visual == 100
