"""Many questions at once: each answer is what it would be alone, and one that fails takes none of the others along."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from halfv_edge import HalfVError, Model, RunError
from halfv_edge.engine.context import Context
from halfv_edge.engine.many import Many
from tests.support.vlm import LONG, NEXT, QUESTION, Vlms, picture

GREEDY = {"max_tokens": 16, "temperature": 0}
QUESTIONS: list[Any] = [
    (QUESTION, picture(1)),
    (NEXT, [picture(2, 300, 420), picture(3)]),
    ("is the cat red", ()),
    [
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture(4)}}]},
    ],
    ("and the dog", picture(0, 60, 60)),
    (QUESTION, picture(1)),
    (NEXT, picture(5)),
]


def alone(model: Model, question: Any) -> tuple[str, str | None, int]:
    history, said = ([], question) if isinstance(question, tuple) else (question[:-1], (question[-1]["content"], ()))
    with model.chat(messages=history, mode="exact") as chat:
        answer = chat.ask(*said, **GREEDY)
        return answer.read(), answer.finish_reason, answer.stats.n_kept


@pytest.mark.parametrize("together", [1, 2, 4, 16])
def test_answers_are_what_each_is_alone(together: int, model: Model) -> None:
    expected = [alone(model, question) for question in QUESTIONS]
    outcomes = list(model.answer_many(iter(QUESTIONS), together=together, **GREEDY))
    assert [(one.text, one.finish_reason, one.stats.n_kept) for one in outcomes] == expected
    assert all(one.error is None and one.stats.n_generated and one.stats.ttft_sec > 0 for one in outcomes)


def test_tokens_are_computed_together(vlms: Vlms, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = vlms.load("llava"), []
    evaluate = Context.evaluate_together

    def count(contexts: list[Context], tokens: list[int]) -> None:
        sizes.append(len(contexts))
        evaluate(contexts, tokens)

    monkeypatch.setattr(Context, "evaluate_together", count)
    outcomes = list(model.answer_many([(NEXT, ())] * 6, together=3, grammar="root ::= [a-z]{900}", max_tokens=10))
    assert [one.stats.n_generated for one in outcomes] == [10] * 6
    assert sum(sizes) == 6 * 9 and max(sizes) == 3 and len(sizes) < 30


def test_what_fails_is_its_own(model: Model) -> None:
    questions = [
        (QUESTION, picture(1)),
        (QUESTION, "no.png"),
        ("what " * 2000, ()),
        [{"role": "tool", "content": ""}],
        None,
        (NEXT, ()),
    ]
    outcomes = list(model.answer_many(questions, together=2, **GREEDY))
    assert [one.error is None for one in outcomes] == [True, False, False, False, False, True]
    said = [str(one.error) for one in outcomes[1:5]]
    assert said[0] == "no.png does not exist: check the name and the folder."
    assert said[1].startswith("This question needs a context of ") and said[2].startswith("messages[0]: role = 'tool'")
    assert said[3].startswith("messages = None is not valid")
    assert all((one.text, one.finish_reason, one.stats) == ("", None, None) for one in outcomes[1:5])
    for at in (0, 5):
        assert outcomes[at].text == alone(model, questions[at])[0]


def test_a_step_that_fails_is_taken_by_each_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third question's sequence cannot go on after a while; the batch that it is in fails as a whole."""
    expected = [alone(model, question)[0] for question in QUESTIONS[:3]]
    evaluate = Context.evaluate_together
    bad: list[Context] = []

    def fail(contexts: list[Context], tokens: list[int]) -> None:
        bad.extend(context for context in contexts[2:3] if not bad and len(contexts) == 3)
        if bad and bad[0] in contexts and calls > 3:
            raise RunError("the device is gone.")
        evaluate(contexts, tokens)

    def counted(contexts: list[Context], tokens: list[int]) -> None:
        nonlocal calls
        calls += 1
        fail(contexts, tokens)

    calls = 0
    monkeypatch.setattr(Context, "evaluate_together", counted)
    first, second, third = model.answer_many(QUESTIONS[:3], together=3, **GREEDY)
    assert [first.text, second.text] == expected[:2] and first.error is None and second.error is None
    assert str(third.error) == "the device is gone." and expected[2].startswith(third.text) and third.stats


def test_outcomes_come_as_they_are_ready(vlms: Vlms) -> None:
    """Questions are taken as there is room for them, and leaving the loop frees everything."""
    model, taken = vlms.load("llava"), []

    def questions() -> Iterator[Any]:
        for number in range(50):
            taken.append(number)
            yield (QUESTION, picture(number))

    outcomes = model.answer_many(questions(), together=2, max_tokens=2, grammar=LONG)
    assert taken == []
    assert next(outcomes).stats and len(taken) <= 4
    outcomes.close()
    assert not [one for one in model.runtime.chats if isinstance(one, Many) and one._is_open]
    with model.chat() as chat:
        assert chat.answer(NEXT, max_tokens=2, grammar=LONG)


def test_chats_go_on_beside_it(vlms: Vlms) -> None:
    model = vlms.load("llava")
    with model.chat() as chat:
        expected = chat.answer(QUESTION, picture(1), **GREEDY)
    found: list[str] = []

    def talk() -> None:
        with model.chat() as chat:
            found.append(chat.answer(QUESTION, picture(1), **GREEDY))

    threads = [threading.Thread(target=talk) for _ in range(2)]
    for thread in threads:
        thread.start()
    outcomes = list(model.answer_many([(QUESTION, picture(1))] * 4, **GREEDY))
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 2 and [one.text for one in outcomes] == [expected] * 4


def test_a_model_that_is_closed_ends_it(vlms: Vlms) -> None:
    with Model.load(vlms.path("llava"), n_ctx=256, n_threads=1) as model:
        outcomes = model.answer_many([(NEXT, ())] * 3, together=1, max_tokens=2, grammar=LONG)
        next(outcomes)
    with pytest.raises(HalfVError, match=r"The model model\.gguf was closed"):
        list(outcomes)
    with pytest.raises(HalfVError, match=r"The model model\.gguf is closed"):
        model.answer_many([])


def test_settings_are_checked_before_anything_is_asked(vlms: Vlms) -> None:
    model = vlms.load("llava")
    for wrong in ({"together": 0}, {"together": 300}, {"max_tokens": 0}):
        with pytest.raises(HalfVError, match=f"^{next(iter(wrong))} = "):
            model.answer_many([(NEXT, ())], **wrong)
    assert list(model.answer_many([])) == []
    for outcome in model.answer_many([(NEXT, ())], grammar="root ::= ("):
        assert str(outcome.error).startswith("The grammar cannot be parsed")
