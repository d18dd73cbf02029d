"""HalfVChatHandler against llama_cpp's own handlers: the same programs, on tiny random models."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import halfv_cpp
import llama_cpp
import pytest
from halfv_cpp import llama_h
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Llava15ChatHandler, MTMDChatHandler, Qwen25VLChatHandler

from halfv_edge.handler.handler import ChatError
from halfv_edge.profile.profile import Profile
from tests.support.llama_chat import KINDS, N_VISUAL, Chat, Place, assistant, closing, data_uri, user
from tests.support.tiny_models import make_tiny_lora

SAME_PROFILE = Profile(2, 0.5, 0.2, 4, 0.1, "dropped")  # as in the GGUF
SCHEMA = {
    "type": "object",
    "properties": {"cat": {"type": "boolean"}, "where": {"enum": ["in", "a"]}},
    "required": ["cat", "where"],
}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look", "parameters": SCHEMA}}]
LOOK = {"type": "function", "function": {"name": "look"}}


PICTURE = data_uri(0)
FIRST = [user("what is in the picture", PICTURE)]
SECOND = [*FIRST, assistant("a red cat"), user("where is the dog")]
TWO_PICTURES = [*FIRST, assistant("a red cat"), user("and in this one", data_uri(1), data_uri(2))]
TEXT_ONLY = [{"role": "system", "content": "yes and no"}, user("where is the cat")]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    return functools.cache(lambda kind: Place(tmp_path_factory.mktemp(kind), kind))


@pytest.fixture
def llava(places: Callable[[str], Place]) -> Iterator[Place]:
    yield from closing(places("llava"))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[Place]:
    yield from closing(places(request.param))


@pytest.fixture
def switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFV", "off")


def without_chance(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer or a chunk without its id, its time, and usage, where pictures count in positions."""
    text = json.dumps({name: value for name, value in answer.items() if name not in ("id", "created", "usage")})
    return json.loads(text.replace(answer["id"].removeprefix("chat"), "ID"))


def chosen(chat: Chat) -> list[int]:
    return halfv_cpp.image_tokens(chat.llama.ctx, seq=0, image=0, stage=3)


def words_only(llama: Llama) -> dict[int, float]:
    """A logit_bias against the end, and against bytes: llama_cpp loses those that are no UTF-8 when it streams."""
    names = map(llama._model.token_get_text, range(llama.n_vocab()))
    return {token: -1000.0 for token, name in enumerate(names) if name.startswith("<")}


#
# the same as llama_cpp
#


@pytest.mark.parametrize("like", [MTMDChatHandler, Llava15ChatHandler, Qwen25VLChatHandler])
def test_off_is_upstream(like: type, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With templates of every kind, one conversation after the other on one Llama, cached or not."""
    ours = place.ours(profile="off", mmproj_type="off", like=like)
    conversations = [FIRST, SECOND, TWO_PICTURES, TEXT_ONLY, FIRST]
    found = [ours(messages) for messages in conversations]
    monkeypatch.setenv("HALFV", "off")
    upstream = place.upstream(like)
    for messages, answer in zip(conversations, found, strict=True):
        assert without_chance(answer) == without_chance(upstream(messages))
    assert len({answer["choices"][0]["message"]["content"] for answer in found}) == 4


REQUESTS = {
    "text": {},
    "stop": {"stop": ["e"], "max_tokens": 40},
    "json": {"response_format": {"type": "json_object", "schema": SCHEMA}, "max_tokens": 100},
    "tool": {"tools": TOOLS, "tool_choice": LOOK, "max_tokens": 100},
    "function": {"functions": [TOOLS[0]["function"]], "function_call": {"name": "look"}, "max_tokens": 100},
    "bias": {"logit_bias": {300: 20.0}},
}


@pytest.mark.usefixtures("switched_off")
@pytest.mark.parametrize("request_name", REQUESTS)
def test_requests_are_upstream(request_name: str, place: Place) -> None:
    options = REQUESTS[request_name]
    ours, upstream = place.ours(), place.upstream()
    assert without_chance(ours(FIRST, **options)) == without_chance(upstream(FIRST, **options))
    streamed, wanted = (list(chat(FIRST, stream=True, **options)) for chat in (ours, upstream))
    assert [without_chance(chunk) for chunk in streamed] == [without_chance(chunk) for chunk in wanted]


@pytest.mark.usefixtures("switched_off")
def test_logprobs_are_upstream(llava: Place) -> None:
    options = {"logprobs": True, "top_logprobs": 2}
    found, wanted = (
        chat(FIRST, **options)["choices"][0]["logprobs"]["content"]
        for chat in (llava.ours(logits_all=True, mmproj_type="off"), llava.upstream(logits_all=True))
    )
    assert [token["token"] for token in found] == [token["token"] for token in wanted]
    assert [token["logprob"] for token in found] == pytest.approx([token["logprob"] for token in wanted], abs=1e-4)


def test_pruned_first_turn_is_upstream(place: Place) -> None:
    """llama_cpp's handler on the same libraries prunes too, at the first turn in the same way."""
    ours = place.ours()
    assert ours.text(FIRST) == place.upstream().text(FIRST)
    assert ours.text(FIRST) != place.ours(profile="off").text(FIRST)


def test_stream_joins_to_the_text(place: Place) -> None:
    chat = place.ours()
    options = {"max_tokens": 30, "logit_bias": words_only(chat.llama)}
    whole = place.ours().text(FIRST, **options)
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chat(FIRST, stream=True, **options)]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 3
    assert (chat.stats.n_generated, chat.stats.stopped) == (30, "length")
    assert chat.stats.tokens_per_sec > 0


def test_json_schema_with_a_profile(place: Place) -> None:
    chat = place.ours()
    answer = json.loads(chat.text(FIRST, **REQUESTS["json"]))
    assert isinstance(answer["cat"], bool)
    assert answer["where"] in ("in", "a")
    assert chat.stats.n_kept < chat.stats.n_visual


#
# pruned, and not twice
#


def test_prunes_and_pays_once(place: Place) -> None:
    chat = place.ours()
    n_visual = N_VISUAL[place.kind]
    first = chat(FIRST)
    assert chat.handler.profile_source == "gguf"
    assert (chat.stats.n_visual, chat.stats.n_kept, chat.stats.n_deep) == (n_visual, n_visual // 2, n_visual // 10)
    assert chat.stats.n_encoded == 1
    assert chat.stats.n_prompt > n_visual
    assert 0 < chat.stats.flops_spent < chat.stats.flops_dense
    assert chat.stats.ttft_sec > chat.stats.prefill_sec > 0

    # the prompt of the first turn stays as it is, the question adds tokens that matter to it
    second = chat([*FIRST, assistant(first["choices"][0]["message"]["content"]), user("where is the dog")])
    n_new = second["usage"]["prompt_tokens"] - first["usage"]["prompt_tokens"]
    assert chat.stats.n_encoded == 0
    assert chat.stats.encode_sec == 0
    assert 0 < chat.stats.n_prompt <= n_new
    assert n_visual // 2 < chat.stats.n_kept < n_visual

    # the same request again computes one token, and chooses nothing
    n_kept = chat.stats.n_kept
    again = chat([*FIRST, assistant(first["choices"][0]["message"]["content"]), user("where is the dog")])
    assert (chat.stats.n_prompt, chat.stats.n_kept) == (1, n_kept)
    assert without_chance(again) == without_chance(second)


def test_one_output_for_a_prompt(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the last token only, and that one is not evaluated again when the answer begins."""
    chat = place.ours(image_cache_mb=0)
    outputs, evaluated = [], []
    evaluate = chat.llama.eval

    def counted(decode: Callable[..., int]) -> Callable[..., int]:
        def decode_and_count(context: int, batch: Any) -> int:
            outputs.extend(batch.logits[: batch.n_tokens])
            return decode(context, batch)

        return decode_and_count

    for module in (llama_cpp, llama_h):  # the answer's and the prompt's
        monkeypatch.setattr(module, "llama_decode", counted(module.llama_decode))
    monkeypatch.setattr(chat.llama, "eval", lambda tokens: (evaluated.append(list(tokens)), evaluate(tokens)))
    chat(SECOND, max_tokens=3)
    assert outputs == [*[0] * (len(outputs) - 1), 1]
    assert [len(tokens) for tokens in evaluated] == [0, *[1] * (len(evaluated) - 1)]


@pytest.mark.parametrize("options", [{}, {"profile": "off"}], ids=["pruned", "off"])
def test_cached_is_fresh(options: dict[str, Any], place: Place) -> None:
    """Whatever came before, a conversation gets the answer that it gets alone; no picture is encoded again."""
    chat = place.ours(**options)
    edited = [user("where is the cat", PICTURE)]
    other = [user("what is in the picture", data_uri(1))]
    seen = []
    for messages in (FIRST, edited, other, edited, TEXT_ONLY, FIRST):
        seen.append(chat.text(messages))
        assert seen[-1] == place.ours(**options).text(messages)
        assert chat.stats.n_encoded == (messages in (FIRST, other) and len(seen) < 4)
    assert len(set(seen)) > 2  # the models' answers do depend on what was asked


def test_edited_question(place: Place) -> None:
    """The picture is neither encoded nor goes through stage I again. Its tokens are chosen anew if that is wanted."""
    edited = [user("where is the dog", PICTURE)]
    kept = {}
    for undo_mb in (256, 0):
        chat = place.ours(undo_mb=undo_mb)
        chat(FIRST)
        first = chosen(chat)
        chat(edited)
        assert chat.stats.n_prompt < 40
        assert chat.stats.n_encoded == 0
        kept[undo_mb] = chosen(chat)
        assert (kept[undo_mb] == first) == (undo_mb == 0)
    alone = place.ours()
    alone(edited)
    assert kept[256] == chosen(alone)


def test_visual_share(place: Place) -> None:
    """Of the context that the Llama had made before its handler came: it is made again, with smaller deep stages."""
    chats = [place.ours(), place.ours(visual_share=0.5)]
    texts = [chat.text(FIRST) for chat in chats]
    assert texts[0] == texts[1]
    whole, smaller = (halfv_cpp.stats(chat.llama.ctx)["kv_size"] for chat in chats)
    assert whole[2] == whole[1] == whole[0] == smaller[0] > smaller[1] > smaller[2]


def test_cache_budget(place: Place) -> None:
    chat = place.ours(image_cache_mb=0)
    other = [user("what is in the picture", data_uri(1))]
    counts = []
    for messages in (FIRST, SECOND, other, FIRST):
        chat(messages)
        counts.append(chat.stats.n_encoded)
    assert counts == [1, 0, 1, 1]


def test_same_picture_twice_in_a_request(place: Place) -> None:
    chat = place.ours()
    chat([user("and", PICTURE, PICTURE)])
    assert (chat.stats.n_encoded, chat.stats.n_visual) == (1, 2 * N_VISUAL[place.kind])


def test_context_overflow(place: Place) -> None:
    chat = place.ours(n_ctx=N_VISUAL[place.kind] + 156)
    said = "needs a context of [0-9]+ tokens, and this one has "
    with pytest.raises(ValueError, match=said):
        chat([user("and", *map(data_uri, range(12)))])
    assert chat.text(FIRST) == place.ours().text(FIRST)


def test_answer_to_the_end_of_the_context(place: Place) -> None:
    """Cells run out before positions do where a picture has more of them."""
    chat = place.ours(n_ctx=N_VISUAL[place.kind] + 156)
    answer = chat(FIRST, max_tokens=None, logit_bias=words_only(chat.llama))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert chat.stats.n_visual + answer["usage"]["completion_tokens"] > N_VISUAL[place.kind] + 60


#
# a Llama that is used in other ways too
#


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda llama, _: llama.create_completion("where is the cat", max_tokens=3),
        lambda llama, _: llama.reset(),
        lambda llama, _: llama.eval([5, 6, 7]),
        lambda llama, state: llama.load_state(state),
    ],
    ids=["completion", "reset", "eval", "load_state"],
)
def test_used_in_between(meanwhile: Callable[[Llama, Any], None], place: Place) -> None:
    chat = place.ours(profile="off")
    chat([user("what is in the picture", data_uri(1))])
    state = chat.llama.save_state()
    chat(FIRST)
    meanwhile(chat.llama, state)
    assert chat.text(SECOND) == place.ours(profile="off").text(SECOND)


def test_failed_request_leaves_the_llama_as_it_is(llava: Place) -> None:
    chat = llava.ours()
    chat(FIRST)
    wanted = chat.llama.create_completion("where is the cat", max_tokens=8, temperature=0)["choices"]
    with pytest.raises(ChatError, match="does not exist"):
        chat([user("and", "file:nowhere.png")])
    again = chat.llama.create_completion("where is the cat", max_tokens=8, temperature=0)["choices"]
    assert again == wanted


def test_used_before(place: Place) -> None:
    chat = place.ours()
    chat.llama.create_completion("where is the cat", max_tokens=3)
    chat.llama.reset()
    assert chat.text(FIRST) == place.ours().text(FIRST)


def test_abandoned_stream(llava: Place) -> None:
    chat = llava.ours(profile="off")
    stream = chat(FIRST, max_tokens=30, stream=True)
    for _ in range(4):
        next(stream)
    assert chat.text(SECOND) == llava.ours(profile="off").text(SECOND)
    stats = chat.stats
    with pytest.raises(ChatError, match="another request"):
        next(stream)
    assert chat.stats == stats
    closed = chat(FIRST, stream=True)
    next(closed)
    closed.close()
    assert chat.stats.stopped == "interrupted"


def test_threads(llava: Place) -> None:
    conversations = [FIRST, [user("where is the dog", data_uri(1))], TEXT_ONLY]
    wanted = [llava.ours().text(messages) for messages in conversations]
    chat = llava.ours()
    found: list[list[str]] = [[] for _ in conversations]

    def ask(number: int) -> None:
        for _ in range(5):
            found[number].append(chat.text(conversations[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[text] * 5 for text in wanted]


def test_one_handler_for_each_llama(llava: Place) -> None:
    chat = llava.ours()
    text = chat.text(FIRST)
    second = llava.llama(chat.handler)
    with pytest.raises(ChatError, match="belongs to another Llama"):
        Chat(second, chat.handler).text(FIRST)
    chat.llama.close()
    assert Chat(second, chat.handler).text(FIRST) == text  # the first is gone


#
# the profile
#


def test_profile_given_to_the_handler(place: Place) -> None:
    """A Llama has its context before the handler knows of it."""
    wanted = place.ours().text(FIRST)
    chat = place.ours(place.whole, profile=SAME_PROFILE)
    assert chat.text(FIRST) == wanted
    assert (chat.handler.profile, chat.handler.profile_source) == (SAME_PROFILE, "flag")
    assert place.ours(profile=SAME_PROFILE.to_json()).text(FIRST) == wanted
    assert place.ours(place.whole).text(FIRST) == place.ours(profile="off").text(FIRST)


def test_keep(place: Place) -> None:
    chat = place.ours(keep=0.3)
    chat(FIRST)
    assert chat.stats.n_kept == N_VISUAL[place.kind] * 3 // 10


def test_lora_outlives_a_new_context(llava: Place) -> None:
    lora = str(make_tiny_lora(llava.folder / "lora.gguf", llava.arch))
    wanted = llava.ours(lora_path=lora).text(FIRST)
    assert llava.ours(llava.whole, profile=SAME_PROFILE, lora_path=lora).text(FIRST) == wanted
    assert wanted != llava.ours().text(FIRST)


@pytest.mark.usefixtures("switched_off")
def test_switched_off_wins(place: Place) -> None:
    chat = place.ours(keep=0.3)
    chat(FIRST)
    assert (chat.handler.profile_source, chat.stats.n_kept) == ("environment", N_VISUAL[place.kind])


def test_profile_that_does_not_fit_leaves_the_llama_as_it_was(llava: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from halfv_edge.handler import handler

    chat = llava.ours(llava.whole, profile=SAME_PROFILE)
    make, calls = handler._internals.LlamaContext, []

    def fail_once(**options: Any) -> Any:
        calls.append(options)
        if len(calls) == 1:
            raise ValueError("Failed to create llama_context")
        return make(**options)

    monkeypatch.setattr(handler._internals, "LlamaContext", fail_once)
    with pytest.raises(ChatError, match="No context can be made with this profile"):
        chat(FIRST)
    assert chat.llama.create_completion("where is", max_tokens=3)["usage"]["completion_tokens"] == 3
