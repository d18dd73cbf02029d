"""Messages in OpenAI's form, in and out, and the one who gives them is not trusted."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halfv_edge import Model
from halfv_edge.engine.encoder import Chunk
from halfv_edge.errors import HalfVError
from tests.support.vlm import LONG, NEXT, QUESTION, Vlms, picture, retell

GREEDY = {"max_tokens": 8, "temperature": 0}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def image(url: object, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "png")
    return file.getvalue()


def data_url(raw: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(raw).decode()}"


def test_a_conversation_is_saved_and_goes_on(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(png(1))
    with model.chat("the cat") as chat:
        chat.add_image(path)
        chat.answer(QUESTION, np.asarray(picture(2)), grammar=LONG, max_tokens=9)
        chat.answer(NEXT, grammar=LONG, max_tokens=9)
        said = chat.messages
    assert [message["role"] for message in said] == ["system", "user", "assistant", "user", "assistant"]
    assert said[0] == {"role": "system", "content": "the cat"}
    first, second, question = said[1]["content"]
    assert first == image(str(path)) and question == text(QUESTION)
    assert second["image_url"]["url"].startswith("data:image/png;base64,")
    assert said[3]["content"] == NEXT and all(isinstance(said[at]["content"], str) for at in (2, 4))
    assert chat.messages == said  # of a closed chat too

    encoded = model.encoder.n_encoded
    with model.chat(messages=json.loads(json.dumps(said))) as later:
        assert later.messages == said
        answer = later.answer("and the dog", **GREEDY)
        assert later.messages == [*said, {"role": "user", "content": "and the dog"}, assistant(answer)]
        assert len(later.token_maps) == 2
        held = [item.n_tokens for item in later._conversation.context.items if isinstance(item, Chunk)]
        later.reset()
        assert later.messages == said[:1]
    assert model.encoder.n_encoded == encoded  # the same pixels
    assert held == [held[0]] * 2
    assert answer == model.answer([*said, {"role": "user", "content": "and the dog"}], **GREEDY)


def assistant(said: str) -> dict[str, Any]:
    return {"role": "assistant", "content": said}


def test_a_restored_conversation_is_what_its_tokens_at_once_give(vlms: Vlms) -> None:
    for kind in ("llava", "qwen2vl"):
        model = vlms.load(kind, profile="off")
        history = [user(image(png(1)), text(QUESTION)), assistant("the cat")]
        with model.chat(messages=history) as chat:
            answer = chat.answer(NEXT, **GREEDY)
            n_tokens = chat.stats.n_generated
            conversation = chat._conversation
            prompt = next(point for point in conversation.checkpoints if point.text)
            assert answer == retell(model, conversation.context.items[: prompt.count], n_tokens)
            assert chat.stats.n_visual > 0


def test_pictures_stand_where_they_are_given(model: Model) -> None:
    parts = [text("before "), image(picture(1)), text(" between "), image(png(2)), text(" after")]
    with model.chat() as chat:
        chat.answer(parts, max_tokens=2, grammar=LONG)
        shown = chat._conversation.marks.sub("<>", chat._conversation.rendered[0]["content"])
        assert shown == "before <> between <> after"
        assert [part["type"] for part in chat.messages[0]["content"]] == [part["type"] for part in parts]
        assert [part["text"] for part in chat.messages[0]["content"][::2]] == ["before ", " between ", " after"]
        chat.add_image(picture(3))
        chat.answer([text("x "), image(picture(4))], picture(5), max_tokens=2, grammar=LONG)
        assert chat._conversation.marks.sub("<>", chat._conversation.rendered[2]["content"]) == "<><>x <>"
        assert len(chat.token_maps) == 5


def test_one_message_is_one_question(model: Model) -> None:
    with model.chat(mode="exact") as chat:
        expected = chat.answer(QUESTION, [picture(1)], **GREEDY)
    for url in (picture(1), png(1), data_url(png(1)), np.asarray(picture(1))):
        assert model.answer([user(image(url, detail="high"), text(QUESTION))], **GREEDY) == expected
    assert (
        model.answer([user({"type": "image_url", "image_url": data_url(png(1))}, text(QUESTION))], **GREEDY) == expected
    )


def test_answers_of_others_may_have_empty_fields(model: Model) -> None:
    """As OpenAI's client gives them back."""
    theirs = assistant("a cat") | {"refusal": None, "annotations": [], "tool_calls": None}
    assert model.answer([user(text(QUESTION)), theirs, user(text(NEXT))], max_tokens=2, grammar=LONG)


def test_no_text_passes_for_a_picture(model: Model) -> None:
    with model.chat() as chat:
        chat.answer(QUESTION, picture(1), max_tokens=2, grammar=LONG)
        mark = chat._conversation.waiting_marks() or chat._conversation.rendered[0]["content"].split(QUESTION)[0]
        said = chat.messages
    assert "picture-" in mark and "picture-" not in json.dumps([part["type"] for part in said[0]["content"]])
    with model.chat(messages=[user(text(mark)), assistant(mark)]) as chat:
        chat.answer(mark, max_tokens=2, grammar=LONG)
        assert chat.token_maps == [] and chat.messages[0] == {"role": "user", "content": mark}


BAD = {
    "no list": ({"role": "user"}, "messages = {'role': 'user'} is not valid: it must be a list of messages."),
    "no object": (["hello"], "messages[0] = 'hello' is not valid: it must be an object with role and content."),
    "a role": (
        [{"role": "tool", "content": "x"}],
        "messages[0]: role = 'tool' is not valid: it must be one of system,",
    ),
    "no role": ([{"content": "x"}], "messages[0]: role = None is not valid"),
    "a list as role": ([{"role": [], "content": "x"}], "messages[0]: role = [] is not valid"),
    "no content": (
        [{"role": "user"}],
        "messages[0]: content = None is not valid: it must be text, or a list of parts.",
    ),
    "a tool": (
        [assistant("x") | {"tool_calls": [{"id": 7}]}],
        "messages[0] has 'tool_calls', which cannot be used: leave all but role, content out.",
    ),
    "no part": ([user("x")], "messages[0]: content[0] = 'x' is not valid: it must be an object with a type."),
    "a type": (
        [user({"type": "audio"})],
        "messages[0]: content[0]: type = 'audio' is not valid: it must be one of text,",
    ),
    "text of a number": ([user(text(7))], "messages[0]: content[0]: text = 7 is not valid: it must be text."),
    "no url": ([user({"type": "image_url", "image_url": {}})], "messages[0]: content[0]: image_url has no url"),
    "more than an url": (
        [user({"type": "image_url", "image_url": {"url": "x", "crop": 1}})],
        "messages[0]: content[0]: image_url has 'crop', which cannot be used",
    ),
    "an url of a number": ([user(image(7))], "messages[0]: content[0]: A int is not an image"),
    "http": ([user(image("https://a/b.png"))], "messages[0]: content[0]: https://a/b.png is not fetched: download it"),
    "no file": ([user(text("x"), image("no.png"))], "messages[0]: content[1]: no.png does not exist"),
    "no base64": ([user(image("data:image/png;base64,?"))], "'data:image/png;base64,?'... is not valid base64"),
    "no comma": ([user(image("data:image/png"))], "'data:image/png' has no comma"),
    "no picture": ([user(image("data:image/png;base64,aGFsbG8="))], "The data URL of 5 bytes is not an image that"),
    "a picture by the model": (
        [{"role": "assistant", "content": [image(picture())]}],
        "messages[0] has a picture, and its role is 'assistant': pictures belong to the user's messages.",
    ),
    "something long": ([{"role": "x" * 10**6, "content": ""}], "messages[0]: role = 'xxx"),
    "lines": ([{"role": "a\nb", "content": ""}], r"messages[0]: role = 'a\nb' is not valid"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_message_is_one_sentence(name: str, vlms: Vlms) -> None:
    messages, expected = BAD[name]
    model = vlms.load("llava")
    for use in (lambda: model.chat(messages=messages), lambda: model.answer(messages)):
        with pytest.raises(HalfVError) as error:
            use()
        said = str(error.value)
        assert expected in said and "\n" not in said and len(said) < 300


def test_who_speaks_next(vlms: Vlms) -> None:
    model = vlms.load("llava")
    with pytest.raises(HalfVError, match=r"^messages\[1\] is a question that waits for its answer"):
        model.chat(messages=[assistant("x"), user(text("y"))])
    with pytest.raises(HalfVError, match=r"^messages must end with one of the user's"):
        model.answer([assistant("x")])
    with pytest.raises(HalfVError, match=r"^messages must end with one of the user's"):
        model.answer([])
    with pytest.raises(HalfVError, match=r"^Both system and messages\[0\]"):
        model.chat("x", messages=[{"role": "system", "content": "y"}])
    with pytest.raises(HalfVError, match=r"^system = 7 is not valid"):
        model.chat(7)
    with model.chat() as chat:
        with pytest.raises(HalfVError, match=r"^question\[0\]: type = 'video' is not valid"):
            chat.ask([{"type": "video"}])
        assert chat.answer(NEXT, max_tokens=2, grammar=LONG)
