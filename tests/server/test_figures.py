"""What a response and /metrics say of pictures, and what a request may ask of pruning."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from halfv_edge.testing.server import Reply, Server, about
from tests.support.demo_server import PICTURES, QUESTIONS, complaint, get, metric, post, start

TOTAL = about(PICTURES[0], QUESTIONS[0])
NOISE = 5e-3  # of a log-probability, with K and V in f16


@pytest.fixture(scope="module")
def server(programs: Path) -> Iterator[Server]:
    env = {"LLAMA_MEDIA_MARKER": "<__media__>"}  # else another one in every process
    with start(programs, "-np", "2", "-c", "4096", "--metrics", env=env) as server:
        yield server


def pictures(reply: Reply) -> dict[str, float]:
    assert reply.pictures is not None
    return reply.pictures


def same(a: Reply, b: Reply) -> bool:
    return a.text == b.text and max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)) < NOISE


def test_timings_usage_and_metrics(server: Server) -> None:
    before = {name: metric(server, f"halfv:{name}_total") for name in ("requests", "visual_tokens", "visual_kept")}
    for _ in range(2):  # what the slot did before does not count
        status, answer = post(server, {"messages": TOTAL, "max_tokens": 2, "temperature": 0, "cache_prompt": False})
        assert status == 200 and 0 < answer["timings"]["halfv"]["select_ms"] < answer["timings"]["prompt_ms"]
    found = answer["timings"]["halfv"]
    assert found["images"] == 1 and found["visual_seen"] > found["visual_kept"] >= found["visual_deep"]
    assert "not_pruned" not in found
    parts = found["encode_ms"] + found["select_ms"] + found["prefill_ms"]
    assert parts == pytest.approx(answer["timings"]["prompt_ms"], rel=1e-3)
    details = answer["usage"]["prompt_tokens_details"]
    assert [details[f"visual_tokens{end}"] for end in ("", "_kept", "_deep")] == [
        found[f"visual_{end}"] for end in ("seen", "kept", "deep")
    ]
    assert metric(server, "halfv:requests_total") == before["requests"] + 2
    assert metric(server, "halfv:visual_tokens_total") == before["visual_tokens"] + 2 * found["visual_seen"]
    assert metric(server, "halfv:visual_kept_total") == before["visual_kept"] + 2 * found["visual_kept"]
    assert get(server, "/metrics").count("# TYPE halfv:") == 9


def test_text_alone_has_no_figures(server: Server) -> None:
    reply = server.ask([{"role": "user", "content": "What is this?"}], max_tokens=2, cache_prompt=False)
    assert reply.pictures is None


def test_a_request_may_run_whole(server: Server, programs: Path) -> None:
    with start(programs, "-np", "1", "-c", "2048", env={"HALFV": "off"}) as stock:
        expected = stock.ask(TOTAL, max_tokens=6)
        assert pictures(expected)["not_pruned"] == "no profile"
    whole = server.ask(TOTAL, max_tokens=6, halfv=False)
    assert pictures(whole)["visual_deep"] == pictures(whole)["visual_seen"]
    assert pictures(whole)["not_pruned"] == "disabled"
    assert whole.text == expected.text  # its log-probabilities are only near: the encoder computes otherwise


def test_a_request_may_keep_another_share(server: Server) -> None:
    fresh = server.ask(TOTAL, max_tokens=6, cache_prompt=False)
    half = server.ask(TOTAL, max_tokens=6, halfv={"keep": 0.5})
    assert pictures(half)["visual_kept"] == round(0.5 * pictures(half)["visual_seen"])
    again = server.ask(TOTAL, max_tokens=6)
    assert pictures(again)["visual_kept"] == pictures(fresh)["visual_kept"] != pictures(half)["visual_kept"]
    assert same(again, fresh)  # nothing of the other share was taken from the prompt cache
    assert server.ask(TOTAL, max_tokens=6, halfv={"keep": 0.5}).n_cached > pictures(half)["visual_seen"]
    assert same(server.ask(TOTAL, max_tokens=6, halfv=True), fresh)


def test_requests_at_once_keep_what_each_asked_for(server: Server) -> None:
    wishes = [False, {"keep": 0.5}, {"keep": 0.9}, True] * 3

    def ask(wish: object) -> Reply:
        return server.ask(TOTAL, max_tokens=4, cache_prompt=False, halfv=wish)

    alone = {repr(wish): ask(wish) for wish in wishes[:4]}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, wishes))
    for wish, reply in zip(wishes, together, strict=True):
        assert pictures(reply)["visual_kept"] == pictures(alone[repr(wish)])["visual_kept"], wish
        assert reply.text == alone[repr(wish)].text


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/completion"])
def test_other_routes_take_wishes(server: Server, path: str) -> None:
    kept = metric(server, "halfv:visual_kept_total"), metric(server, "halfv:visual_tokens_total")
    assert post(server, asking(path) | {"halfv": False}, path)[0] == 200
    whole = metric(server, "halfv:visual_kept_total"), metric(server, "halfv:visual_tokens_total")
    assert whole[0] - kept[0] == whole[1] - kept[1] > 100
    assert '"halfv": 7 is not valid' in post(server, asking(path) | {"halfv": 7}, path)[1]["error"]["message"]


def asking(path: str) -> dict[str, Any]:
    """A picture and a question, as that route has them."""
    uri = TOTAL[0]["content"][0]["image_url"]["url"]
    data = uri.partition(",")[2]
    if path == "/completion":
        return {"prompt": {"prompt_string": "What? <__media__>", "multimodal_data": [data]}, "n_predict": 1}
    if path == "/v1/messages":
        source = {"type": "base64", "media_type": "image/png", "data": data}
        parts = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
        return {"model": "x", "max_tokens": 1, "messages": [{"role": "user", "content": parts}]}
    items = [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": "What?"}]
    return {"model": "x", "max_output_tokens": 1, "input": [{"role": "user", "content": items}]}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (7, '"halfv": 7 is not valid: it must be true, false or an object'),
        ("off", '"halfv": "off" is not valid'),
        ({"kep": 0.5}, '"halfv" has no setting "kep": it has "keep"'),
        ({"keep": 7}, '"halfv": {"keep": 7} is not valid: it must be above 0 and at most 1'),
        ({"keep": "x" * 1000}, "is not valid: it must be above 0"),
        ({"keep": None}, "is not valid: it must be above 0"),
    ],
)
def test_a_wish_that_is_wrong(server: Server, wish: object, said: str) -> None:
    message = complaint(server, {"messages": TOTAL, "max_tokens": 1, "halfv": wish})
    assert said in message and len(message) < 300
