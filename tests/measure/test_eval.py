"""`halfv eval` on a tiny model: what is asked, what is compared, what is kept on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from halfv_edge.cli.main import main
from halfv_edge.engine import images
from halfv_edge.engine.context import n_cells
from halfv_edge.engine.encoder import Chunk
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.measure import selectors
from halfv_edge.measure.calibrate import entropy
from halfv_edge.measure.eval import frontier, summary
from halfv_edge.measure.eval.asking import Asker
from halfv_edge.measure.eval.evaluation import Result
from halfv_edge.measure.eval.questions import Question
from halfv_edge.measure.policies import PolicyModel, aim_schedule, parse_one
from tests.support.drawn import entering, page
from tests.support.vlm import QUESTION, Vlms, picture, retell

TOKENS = 6
QUESTIONS = (QUESTION, "where is the cat", "is the dog red")


@pytest.fixture(scope="module")
def model(vlms: Vlms) -> Model:
    return vlms.load("qwen2vl")


@pytest.fixture(scope="module")
def given(model: Model) -> PolicyModel:
    return PolicyModel(model.n_layer, model.profile)


@pytest.fixture
def asker(model: Model):
    asker = Asker(model, TOKENS, 4)
    yield asker
    asker.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures with two questions each."""
    lines = []
    for at in range(3):
        picture(at, 336, 280).save(tmp_path / f"{at}.png")
        for question, task in ((QUESTIONS[at], "what"), (QUESTIONS[(at + 1) % 3], "where")):
            lines.append({"image": f"{at}.png", "question": question, "answers": ["yes"], "task": task})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path


@pytest.fixture
def evaluate(vlms: Vlms, folder: Path, capsys: pytest.CaptureFixture[str]):
    def call(*flags: str, kind: str = "qwen2vl", code: int = 0) -> tuple[str, str]:
        path = vlms.path(kind)
        common = ["-m", str(path), "--threads", "1", "--max-tokens", str(TOKENS), "--work", str(folder / "work.jsonl")]
        assert main(["eval", str(folder / "q.jsonl"), *common, *flags]) == code
        return capsys.readouterr()

    return call


def test_an_answer_is_that_of_a_chat(asker: Asker, model: Model, given: PolicyModel) -> None:
    """Unpruned, and with the profile, after a teacher whose tokens were followed first."""
    shown = images.load(picture(0, 336, 280))
    teacher = asker.ask(parse_one("unpruned", given), shown, QUESTION)
    head, tail, _ = asker.items(parse_one("unpruned", given), shown, QUESTION)
    assert teacher.text == retell_unpruned(asker, head + tail)
    assert teacher.n_deep == teacher.n_visual == 120
    assert teacher.unpruned == "unpruned"

    alone = asker.ask(parse_one("profile", given), shown, QUESTION)
    taught = asker.ask(parse_one("profile", given), shown, QUESTION, teacher)
    asker.close()
    asker._contexts.clear()
    model_profile(model)
    assert taught.text == alone.text == retell(model, head + tail, TOKENS)
    assert taught.n_kept == 60
    assert taught.n_deep == 12
    assert taught.flops < teacher.flops


def retell_unpruned(asker: Asker, items: list) -> str:
    context = asker.context(parse_one("unpruned", PolicyModel(6, None)), 400)
    tokens = []
    context.evaluate(items, output=True)
    for _ in range(TOKENS):
        tokens.append(int(asker.runtime.logits(context).argmax()))
        context.evaluate(tokens[-1:], output=True)
    return asker._text(tokens)


def model_profile(model: Model) -> None:
    import halfv_cpp

    halfv_cpp.set_model_profile(model.runtime.pointer, model.profile.to_c())


def test_kl_is_that_of_the_teachers_tokens(asker: Asker, given: PolicyModel) -> None:
    shown = images.load(picture(0, 336, 280))
    unpruned, profile = parse_one("unpruned", given), parse_one("profile", given)
    teacher = asker.ask(unpruned, shown, QUESTION)
    assert asker.ask(unpruned, shown, QUESTION, teacher).kl == 0
    assert len(teacher.logits) == 4

    head, tail, _ = asker.items(profile, shown, QUESTION)
    context = asker.context(profile, 400)
    context.evaluate([*head, *tail], output=True)
    rows = [asker.runtime.logits(context)]
    for token in teacher.tokens[:3]:
        context.evaluate([token], output=True)
        rows.append(asker.runtime.logits(context))
    expected = entropy.kl(teacher.logits, np.stack(rows))
    assert expected > 0
    assert asker.ask(profile, shown, QUESTION, teacher).kl == pytest.approx(expected, rel=1e-4)


def test_prepared_and_smaller_pictures(asker: Asker, given: PolicyModel) -> None:
    shown = images.load(picture(0, 336, 280))
    prepared = asker.ask(parse_one("prepared", given), shown, QUESTION)
    assert prepared.n_kept == 60
    smaller = asker.ask(parse_one("downscale:40", given), shown, QUESTION)
    assert smaller.n_visual <= 40
    assert smaller.flops < asker.ask(parse_one("unpruned", given), shown, QUESTION).flops / 1.5


def test_left_out_of_the_encoder_alone(asker: Asker, given: PolicyModel) -> None:
    """As many FLOPs as a picture of the tokens that entered."""
    shown = images.load(Image.fromarray(page(12 * 28, 10 * 28, 28)))
    whole, spared = (asker.ask(parse_one(name, given), shown, QUESTION) for name in ("unpruned", "pixel:0"))
    assert spared.n_patches == whole.n_visual == 120
    assert spared.n_visual == len(entering(np.asarray(shown.image), 28)) < 120
    head, tail, _ = asker.items(parse_one("unpruned", given), shown, QUESTION)
    assert spared.flops == asker.flops(n_cells(head) + len(tail) - whole.n_visual + spared.n_visual) < whole.flops


def test_left_out_before_the_language_model(asker: Asker, given: PolicyModel) -> None:
    """As many FLOPs as a picture of the tokens that go on, whatever the policy that was encoded for before."""
    shown = images.load(picture(0, 336, 280))
    whole, spared = (asker.ask(parse_one(name, given), shown, QUESTION) for name in ("unpruned", "input:0.5"))
    assert (spared.n_patches, spared.n_visual, spared.n_deep) == (120, 60, 60)
    assert (whole.n_visual, spared.unpruned) == (120, "")
    head, tail, _ = asker.items(parse_one("unpruned", given), shown, QUESTION)
    assert spared.flops == asker.flops(n_cells(head) + len(tail) - 60) < whole.flops


def test_the_rows_are_those_that_libmtmd_leaves(asker: Asker, given: PolicyModel) -> None:
    """Though they are chosen from one encoding for all shares."""
    shown = images.load(picture(0, 336, 280))
    for name in ("input:0.5", "input:0.2"):
        policy = parse_one(name, given)
        left = asker.encoder(policy).tokens(shown)
        asker.encoder(policy).encode(left)
        (chunk,) = (item for item in asker.items(policy, shown, QUESTION)[0] if isinstance(item, Chunk))
        assert chunk.given() == left.chunks[0].given()
        np.testing.assert_array_equal(chunk.embd, left.chunks[0].embd)


def test_less_of_a_picture_in_later_layers_of_the_encoder(asker: Asker, given: PolicyModel) -> None:
    """Every token is there for the language model, and they are other ones."""
    shown = images.load(picture(0, 336, 280))
    whole, reduced = (asker.encoder(parse_one(name, given)) for name in ("unpruned", "encoder:1/0.5"))
    answer = asker.ask(parse_one("encoder:1/0.5", given), shown, QUESTION)
    assert (answer.n_visual, answer.n_kept, answer.unpruned) == (120, 120, "")
    rows = [encoder.tokens(shown) for encoder in (whole, reduced)]
    assert rows[0].digest != rows[1].digest
    for encoder, encoded in zip((whole, reduced), rows, strict=True):
        encoder.encode(encoded)
    first, second = (encoded.chunks[0].embd for encoded in rows)
    assert first is not None and second is not None and first.shape == second.shape
    assert not np.array_equal(first, second)


def test_chosen_by_selectors(asker: Asker, given: PolicyModel) -> None:
    """Before the language model and in it, also behind patches that stay out; what choosing costs is counted."""
    shown = images.load(Image.fromarray(page(12 * 28, 10 * 28, 28)))
    half = asker.ask(parse_one("input:0.5", given), shown, QUESTION)
    for name in ("divprune:0.5", "cdpruner:0.5", "scope-input:0.5", "visionzip:0.5", "holov:0.5"):
        answer = asker.ask(parse_one(name, given), shown, QUESTION)
        assert (answer.n_patches, answer.n_visual, answer.n_kept) == (120, 60, 60)
        assert answer.flops > half.flops
    large = images.load(Image.fromarray(page(18 * 28, 14 * 28, 28)))
    left = len(entering(np.asarray(large.image), 28))
    for name in ("pixel:0+divprune:0.5", "pixel:0+holov:0.5"):
        assert asker.ask(parse_one(name, given), large, QUESTION).n_visual == left // 2 < 126

    own = asker.ask(parse_one("cut:2/0.25", given), shown, QUESTION)
    for name in ("asked:2/0.25", "sieve:2/0.25", "sparsevlm:2/0.25", "scope:2/0.25"):
        answer = asker.ask(parse_one(name, given), shown, QUESTION)
        assert (answer.n_visual, answer.n_kept, answer.n_deep) == (120, 30, 30)
        assert 0.9 * own.flops < answer.flops < 1.1 * own.flops
    deep = asker.ask(parse_one("pixel:0+asked:1/0.5/3/0.25", given), large, QUESTION)
    assert (deep.n_visual, deep.n_kept, deep.n_deep) == (left, left // 2, left // 4)
    aimed = asker.ask(parse_one("aim:0.5", given), large, QUESTION)
    _, keep = aim_schedule(given.n_layer)
    assert (aimed.n_visual, aimed.n_kept, aimed.unpruned) == (126, int(keep[0] * 126), "")
    both = asker.ask(parse_one("input:0.5+cut:2/0.5/4/0.25", given), large, QUESTION)
    assert (both.n_visual, both.n_kept, both.n_deep) == (126, 63, 31)


def test_averaged_and_wiped(asker: Asker, given: PolicyModel) -> None:
    shown = images.load(Image.fromarray(page(12 * 28, 10 * 28, 28)))
    half, own = (asker.ask(parse_one(name, given), shown, QUESTION) for name in ("input:0.5", "profile"))
    merged = asker.ask(parse_one("merge:0.5", given), shown, QUESTION)
    assert (merged.n_patches, merged.n_visual, merged.n_kept, merged.flops) == (120, 60, 60, half.flops)
    assert not np.array_equal(merged.logits, half.logits)
    both = asker.ask(parse_one("merge:0.5+input:0.5", given), shown, QUESTION)
    assert (both.n_visual, both.unpruned) == (30, "")
    wiped = asker.ask(parse_one(f"wipe:{given.n_layer - 1}", given), shown, QUESTION)
    assert (wiped.n_visual, wiped.n_kept, wiped.n_deep) == (own.n_visual, own.n_kept, own.n_deep)
    assert wiped.flops < own.flops


def test_a_selector_that_breaks_says_why(asker: Asker, given: PolicyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_seen: object, _count: int) -> None:
        raise ValueError("no idea which")

    monkeypatch.setitem(selectors.BOUNDARY, "sieve", broken)
    with pytest.raises(ValueError, match="no idea which"):
        asker.ask(parse_one("sieve", given), images.load(picture(0, 336, 280)), QUESTION)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("asked:0.2", "'asked:0.2' is not valid: it is like asked:2/0.2 or :2/0.2/6/0.05"),
        ("cut:2/0.2/6", "'cut:2/0.2/6' is not valid: it is like cut:2/0.2"),
        ("cut:0/0.2", "0 must be a whole number of at least 1"),
        ("cut:4/0.2/3/0.1", r"halfv.ssr.layer = 3 is not valid"),
        (
            "profile+pixel:0",
            r"before \+ must be one of image, pixel, encoder, merge, input, channels, heads, neighbour, bias, yopo",
        ),
        ("divprune", "'divprune' is not valid"),
    ],
)
def test_mistakes_in_policies(given: PolicyModel, name: str, said: str) -> None:
    with pytest.raises(HalfVError, match=said):
        parse_one(name, given)


def test_report(evaluate, folder: Path) -> None:
    plot = folder / "frontier.png"
    out, _ = evaluate("--json", "--policy", "profile,keep:0.3,downscale:40,random,fastv:flops", "--plot", str(plot))
    found = json.loads(out)
    assert found["n_questions"] == 6
    assert found["n_pictures"] == 3
    rows = {row["policy"]: row for row in found["rows"]}
    assert list(rows) == ["unpruned", "profile", "keep:0.3", "downscale:40", "random", "fastv:flops"]
    whole = rows["unpruned"]
    assert (whole["agreement"], whole["kl"], whole["flops_ratio"], whole["ttft_ratio"]) == (1, 0, 1, 1)
    assert rows["profile"]["flops_ratio"] > 1.2
    assert rows["profile"]["kl"] > 0
    assert rows["profile"]["n_kept"] == 60
    assert rows["keep:0.3"]["n_kept"] == 36
    assert (rows["random"]["n_kept"], rows["random"]["n_deep"]) == (60, 12)
    assert rows["random"]["kl"] != rows["profile"]["kl"]
    assert rows["fastv:flops"]["n_deep"] == rows["fastv:flops"]["n_kept"] < 60
    assert rows["fastv:flops"]["flops_ratio"] == pytest.approx(rows["profile"]["flops_ratio"], rel=0.04)
    assert set(whole["tasks"]) == {"what", "where"}
    assert whole["tasks"]["what"]["n"] == 3
    assert all(pair["n_pictures"] == 3 and pair["leads"] for pair in found["pairs"])
    assert Image.open(plot).width > 1000


def test_a_run_goes_on(evaluate, folder: Path) -> None:
    evaluate("--policy", "profile")
    work = folder / "work.jsonl"
    lines = work.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 6 * 2
    changed = lines[1].replace('"score": 0.0', '"score": 1.0')
    assert changed != lines[1]
    work.write_text("".join([lines[0], changed, *lines[2:-3]]) + lines[-3][:20])  # killed while it wrote
    out, said = evaluate("--policy", "profile,vtw:3", "--json")
    assert "has 9 results of an earlier run: going on from there." in said
    row = json.loads(out)["rows"][0]
    assert row["tasks"]["what"]["score"] == pytest.approx(1 / 3)  # the kept results are used
    assert len(work.read_text().splitlines()) == 1 + 6 * 3
    _, said = evaluate("--max-tokens", "2", code=2)
    assert said.endswith(f"{work} has results of another model or other settings: name another file with --work.\n")


def test_follow_up(evaluate) -> None:
    out, _ = evaluate("--follow-up", "--json")
    rows = {row["way"]: row for row in json.loads(out)["rows"]}
    assert list(rows) == ["unpruned", "exact", "exact, topped up", "prepared", "prepared, topped up"]
    assert rows["unpruned"]["n_kept_first"] == 120
    for way in ("exact", "prepared"):
        assert rows[way]["n_kept_last"] == rows[way]["n_kept_first"] == 60
        assert rows[f"{way}, topped up"]["n_kept_last"] > 60
    assert min(row["ahead_s"] for row in rows.values()) > 0
    assert rows["exact"]["first"]["n"] == rows["exact"]["later"]["n"] == 3


def test_tables(evaluate) -> None:
    out, _ = evaluate()
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")] == [
        "| policy", "| ---", "| unpruned", "| profile", "| policy", "| ---", "| unpruned", "| profile",
    ]  # fmt: skip
    assert "what (3)" in out
    out, _ = evaluate("--policy", "profile,keep:0.3,stock", "--against", "keep:0.3")
    assert out.splitlines()[-4:][0].startswith("| first | second | first leads by | pictures | first better")
    assert [line.split(" | ")[:2] for line in out.splitlines()[-2:]] == [
        ["| keep:0.3", "profile"], ["| keep:0.3", "stock"],
    ]  # fmt: skip
    _, said = evaluate("--policy", "profile", "--against", "vtw:3", code=2)
    assert "--against vtw:3 is not valid: it must be one of the policies that are asked, unpruned, profile." in said


def test_an_encoder_of_one_size_cannot_downscale(evaluate) -> None:
    _, said = evaluate("--policy", "downscale:64", kind="llava", code=2)
    assert said.splitlines()[-1] == (
        "halfv: The policy downscale:64 has no effect: mmproj-model.gguf gives 100 tokens whatever the size of a "
        "picture, so nothing is saved by a smaller one."
    )


def test_never_pruning_is_an_error(evaluate, folder: Path) -> None:
    for at in range(3):
        picture(at, 112, 112).save(folder / f"{at}.png")  # 16 tokens
    _, said = evaluate(code=1)
    assert said.splitlines()[-1] == "halfv: The policy profile was to prune and never did: small, of 6 pictures."


def test_summary_of_scores() -> None:
    """Retention is that of the mean over tasks, however many questions a task has."""
    asked = [Question(str(at), Path(str(at)), "", ("yes",), task, "exact") for at, task in enumerate("aaab")]

    def results(*scores: float) -> list[Result]:
        times = {"encode_s": 1, "ahead_s": 0, "enter_s": 1, "flops": 1, "n_visual": 8, "n_kept": 4, "n_deep": 2}
        return [{"score": score, "agrees": True, "kl": 0.5, "unpruned": "", "text": ""} | times for score in scores]

    rows = summary.of_policies(asked, {"unpruned": results(1, 1, 0, 1), "half": results(1, 0, 0, 1)})
    assert rows[0].score == pytest.approx((2 / 3 + 1) / 2)
    assert rows[1].retention == pytest.approx((1 / 3 + 1) / (2 / 3 + 1))
    low, high = rows[1].retention_interval
    assert low <= rows[1].retention <= high <= 1
    assert rows[1].tasks["a"].retention == pytest.approx(0.5)


def test_equal_time() -> None:
    """By straight lines between the numbers that were run, the unpruned model at one end."""

    def row(policy: str, time: float, retention: float | None) -> SimpleNamespace:
        return SimpleNamespace(policy=policy, ttft_ratio=1 / time, flops_ratio=2 / (1 + time), retention=retention)

    rows = [
        row("unpruned", 1, 1),
        row("profile", 0.4, 0.97),
        row("downscale:9", 0.3, 0.5),
        row("downscale:90", 0.5, 0.8),
    ]
    rows += [row("fastv", 0.6, 0.9), row("vtw", 0.2, 0.6)]
    found = {equal.kind: equal for equal in frontier.at_the_profiles(rows)}
    assert found["profile"].time == 0.97
    assert found["downscale"].time == pytest.approx(0.65)
    assert found["downscale"].flops == pytest.approx(0.65)
    assert found["fastv"].time is None  # not as fast
    near = {equal.kind: equal for equal in frontier.at_the_profiles([*rows, row("dart", 0.407, 0.7)])}
    assert near["dart"].time == 0.7
    assert found["vtw"].time == pytest.approx(0.6 + 0.4 * 0.2 / 0.8)
    assert frontier.at_the_profiles([row("unpruned", 1, 1)]) == []
    assert frontier.at_the_profiles([*rows, row("none", 1, None)]) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 is []:"),
        ('{"question": "a", "answers": ["b"]}', "line 1 has no image"),
        ('{"image": "0.png", "question": "a"}', "line 1 has no answers"),
        ('{"image": "0.png", "question": "a", "answers": ["b"], "metric": "bleu"}', 'line 1 has the metric "bleu"'),
        ('{"image": "9.png", "question": "a", "answers": ["b"]}', "9.png does not exist"),
        ("", "has no questions"),
    ],
)
def test_mistakes_in_the_questions(evaluate, folder: Path, line: str, said: str) -> None:
    (folder / "q.jsonl").write_text(line + "\n")
    _, text = evaluate(code=2)
    assert said in text.splitlines()[-1]
