"""`halfv bench` runs, and what it reports besides times is right."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from halfv_cpp import library
from PIL import Image

from halfv_edge.cli.main import main
from halfv_edge.engine.options import ModelOptions
from halfv_edge.errors import HalfVError
from halfv_edge.measure import BenchOptions, Progress, RandomModel, run_bench
from halfv_edge.measure.bench.pictures import photo
from tests.support.drawn import entering, page
from tests.support.vlm import Vlms, picture

N_VISUAL, N_KEPT, N_DEEP = 256, 64, 12  # shape `tiny`: keep 0.25, update 0.05
N_PREFIX, N_QUESTION = 8, 40
QUICK = ["--repeats", "2", "--decode", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def shapes_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def bench(shapes_dir: Path, capsys: pytest.CaptureFixture[str]):
    def run(*flags: str, shape: str | None = "tiny", code: int = 0) -> tuple[str, str]:
        which = ["--shape", shape, "--models", str(shapes_dir)] if shape else []
        assert main(["bench", *which, *QUICK, *flags]) == code
        return capsys.readouterr()

    return run


def measured(bench, *flags: str, **options: str | None) -> dict:
    out, _ = bench("--json", *flags, **options)
    report = json.loads(out)
    assert report["commit"]
    assert report["machine"]["cpu"]
    return report


def test_prompt(bench) -> None:
    report = measured(bench, "--no-encoder")
    whole, row = report["rows"]
    assert [whole["run"], row["run"]] == ["unpruned", "profile"]
    assert (row["n_visual"], row["n_kept"], row["n_deep"]) == (N_VISUAL, N_KEPT, N_DEEP)
    for value in (row["ttft_s"], row["prefill_s"], row["ttft_ratio"], row["decode_tokens_per_s"]):
        assert 0 < value["min"] <= value["median"] <= value["max"]
    assert row["encode_s"]["max"] == 0
    assert row["select_s"]["median"] > 0

    # heads of 32, 4 and 2 of them; 8 layers x 128; 512 tokens in the vocabulary
    n_embd, q, kv, n_ff, n_vocab = 128, 128, 64, 256, 512

    def span(n_layers: int, n: int, before: int = N_PREFIX) -> float:
        pairs = n * before + n * (n + 1) / 2
        return n_layers * (n * 2 * n_embd * (2 * q + 2 * kv + 3 * n_ff) + pairs * 4 * q)

    def last(n: int) -> float:
        """What those of the last layer who give no output do not go through."""
        return n * 2 * n_embd * 3 * n_ff

    head = 2 * n_embd * n_vocab
    prefix = span(8, N_PREFIX, before=0) - last(N_PREFIX)
    dense = prefix + span(8, N_VISUAL + N_QUESTION) - last(N_VISUAL + N_QUESTION - 1) + head
    kept, deep = N_KEPT + N_QUESTION, N_DEEP + N_QUESTION
    stages = span(2, N_VISUAL + N_QUESTION) + span(3, kept) + span(2, deep) - last(deep - 1)
    # the last layer of stage II: Q, K and V of all in it, the rest for those that stay, which see all the others
    stages += kept * 2 * n_embd * (q + 2 * kv) + span(1, deep, before=N_PREFIX + N_KEPT - N_DEEP)
    pruner = 2 * N_VISUAL * q + 2 * N_VISUAL * N_KEPT * n_embd + 2 * N_KEPT * q
    assert whole["flops"] == pytest.approx(dense, rel=1e-9)
    assert row["flops"] == pytest.approx(prefix + stages + pruner + head, rel=1e-9)
    assert row["flops_ratio"] == pytest.approx(whole["flops"] / row["flops"])

    n_prompt = N_PREFIX + N_VISUAL + N_QUESTION
    cell = 2 * 2 * kv  # K and V of a layer in f16
    text = N_PREFIX + N_QUESTION
    assert whole["kv_bytes"] == 8 * cell * n_prompt
    assert row["kv_bytes"] == cell * (2 * n_prompt + 4 * (text + N_KEPT) + 2 * (text + N_DEEP))
    assert row["peak_bytes"] is None or row["peak_bytes"] > 10 << 20


def test_runs_where_chats_do(bench) -> None:
    """On the GPU, with as many threads."""
    report = json.loads(bench("--json")[0])
    options = ModelOptions()
    assert report["n_gpu_layers"] == options.n_gpu_layers == BenchOptions().n_gpu_layers == -1
    assert options.n_threads is BenchOptions().n_threads is None


def test_several_policies_with_the_encoder(bench, tmp_path: Path) -> None:
    plot = tmp_path / "speed.png"
    report = measured(
        bench, "--keep", "0.5,0.1", "--policy", "vtw:3,shortv:0.5,downscale:100,dart:0.25", "--plot", str(plot)
    )
    rows = {row["run"]: row for row in report["rows"]}
    names = [
        "stock",
        "unpruned",
        "profile",
        "keep:0.5",
        "keep:0.1",
        "vtw:3",
        "shortv:0.5",
        "downscale:100",
        "dart:0.25",
    ]
    assert list(rows) == names
    for row in rows.values():
        assert row["encode_s"]["min"] > 0
        assert row["ttft_s"]["max"] >= row["encode_s"]["max"]
        assert row["n_visual"] == (100 if row["run"] == "downscale:100" else N_VISUAL)
    assert [rows[name]["n_kept"] for name in ("profile", "keep:0.5", "keep:0.1")] == [64, 128, 25]
    assert rows["vtw:3"]["n_kept"] == N_VISUAL
    assert rows["vtw:3"]["n_deep"] == 0
    assert rows["dart:0.25"]["n_kept"] == rows["dart:0.25"]["n_deep"] == 4 + 8 * (64 // 8)
    assert rows["vtw:3"]["kv_bytes"] < rows["shortv:0.5"]["kv_bytes"] == rows["unpruned"]["kv_bytes"]
    assert rows["downscale:100"]["flops_ratio"] > 1.5
    image = Image.open(plot)
    assert image.width > 1000
    assert len(image.getcolors(1 << 20)) > 8


def test_an_encoder_of_one_size(bench) -> None:
    out, _ = bench(shape="tiny-llava")
    lines = out.splitlines()
    assert lines[0].startswith("tiny-llava (llama, random, q4_0), 1 threads")
    assert [line.startswith("| photo 280x280 | 100 | ") for line in lines] == [
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    _, said = bench("--tokens", "200", shape="tiny-llava", code=2)
    assert said == (
        "halfv: --tokens 200 does not fit: the encoder of tiny-llava always gives 100: other numbers need "
        "--no-encoder.\n"
    )


@pytest.mark.parametrize(
    ("shape", "kept", "deep"),
    [
        ("tiny-qwen3vl", 64, 12),
        ("tiny-gemma-3", 32, 3),
        ("tiny-qwen3.5", 64, 12),
    ],
)
def test_other_families(bench, shape: str, kept: int, deep: int) -> None:
    row = measured(bench, shape=shape)["rows"][-1]
    assert row["run"] == "profile"
    assert (row["n_kept"], row["n_deep"]) == (kept, deep)
    assert row["encode_s"]["median"] > 0


def test_a_model_with_its_encoder(bench, vlms: Vlms, tmp_path: Path) -> None:
    path = vlms.path("qwen2vl")
    picture(1, 420, 308).save(tmp_path / "a.png")
    report = measured(bench, str(tmp_path / "a.png"), "-m", str(path), shape=None)
    assert [row["n_visual"] for row in report["rows"]] == [15 * 11] * 3
    assert [row["n_kept"] for row in report["rows"]] == [165, 165, 82]
    assert report["encoder"]


def test_parts_of_matrices(bench) -> None:
    """Of packed weights none can be taken: then nobody's are, and the report says so."""
    table, _ = bench("--no-encoder", "--ftype", "q8_0", "--policy", "channels:3/0.5,wipe:7,pyramiddrop")
    assert "; weights not packed for the processor, in all rows" in table
    report = measured(bench, "--no-encoder", "--ftype", "q8_0", "--policy", "channels:3/0.5")
    assert not report["packed"]
    assert report["rows"][2]["flops"] < report["rows"][1]["flops"]
    assert measured(bench, "--no-encoder", "--policy", "neighbour:3/5+vtw:8,yopo")["packed"] is False
    assert measured(bench, "--no-encoder", "--policy", "neighbour:3/5+vtw:8")[
        "packed"
    ]  # all tokens go on, and see less


def test_follow_up(bench) -> None:
    report = measured(bench, "--follow-up", "--no-encoder")
    rows = {row["run"]: row for row in report["rows"]}
    assert list(rows) == ["unpruned", "exact", "prepared, topped up"]
    assert all(row[key]["min"] > 0 for row in rows.values() for key in ("picture_s", "first_s", "second_s"))
    stats = rows["prepared, topped up"]["stats"]
    assert stats["n_kept"] > N_KEPT  # what the second question brought back
    assert stats["n_stored"] == N_VISUAL - stats["n_kept"]
    assert rows["exact"]["stats"]["n_kept"] == N_KEPT


def test_a_picture_of_ones_own(bench, tmp_path: Path) -> None:
    """Speed does depend on a picture where patches repeat, and this shape's profile leaves them out."""
    drawn = page(14 * 28, 12 * 28, 28)
    Image.fromarray(drawn).save(tmp_path / "page.png")
    rows = measured(bench, str(tmp_path / "page.png"), "--warm-up", "0", "--repeats", "1")["rows"]
    counts = {row["run"]: row["n_visual"] for row in rows}
    assert counts == {"stock": 168, "unpruned": 168, "profile": len(entering(drawn, 28))}


def test_drawings(bench) -> None:
    rows = measured(bench, "--draw", "photo,page", "--warm-up", "0", "--repeats", "1")["rows"]
    counts = {(row["picture"].split()[0], row["run"]): row["n_visual"] for row in rows}
    assert counts["photo", "stock"] == counts["photo", "profile"] == counts["page", "unpruned"] == N_VISUAL
    assert N_VISUAL / 2 < counts["page", "profile"] < N_VISUAL
    out, _ = bench("--draw", "page", "--warm-up", "0", "--repeats", "1")
    assert out.splitlines()[4].startswith("| page 448x448 | 256 | stock |")


def test_drawn_photos_have_no_repeats() -> None:
    """Whatever their size, as the noise of a photo has it."""
    for side in (448, 1792):
        assert len(entering(np.asarray(photo(side, side)), 28)) == (side // 28) ** 2


def test_off(bench) -> None:
    ours = str(library.lib_dir())  # as stock too, without a profile
    report = measured(bench, "--off", "--no-encoder", "--stock-lib", ours)
    assert [row["run"] for row in report["rows"]] == ["stock", "HALFV=off", "switched off"]
    assert report["rows"][0]["prefill_cost"] == {"median": 1, "min": 1, "max": 1}


def test_a_run_that_prunes_nothing_is_an_error(bench, tmp_path: Path) -> None:
    profile = {"ivr": {"layer": 2, "keep": 0.5, "anchors": 0.1}, "ssr": {"layer": 6, "update": 0, "rest": "dropped"}}
    (tmp_path / "p.json").write_text(json.dumps(profile | {"version": 1, "min_visual_tokens": 300}))
    _, said = bench("--no-encoder", "--profile", str(tmp_path / "p.json"), code=2)
    assert said.endswith("halfv: The run profile was to be pruned and was not: small, of 256 tokens.\n")
    _, said = bench("--no-encoder", "--keep", "1", "--policy", "ivr", code=0)
    (tmp_path / "p.json").write_text(json.dumps({**profile, "version": 1, "ivr": {"layer": 2, "keep": 1, "anchors": 0},
                                                 "ssr": {"layer": 8, "update": 1, "rest": "dropped"}}))  # fmt: skip
    _, said = bench("--no-encoder", "--profile", str(tmp_path / "p.json"), code=2)
    assert "was to be pruned and was not: disabled" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--off"], "What being off costs shows beside an unpatched llama.cpp: name the folder of its libraries with "),
        (["--draw", "cat"], "--draw cat is not valid: it must be one of photo, page."),
        (["--kv-type", "q9"], "--kv-type q9 is not valid: it must be one of "),
        (["--policy", "fastv:flops"], "The policy 'fastv:flops' is not valid: eval alone can match FLOPs"),
        (["--policy", "fastest"], "There is no policy 'fastest': it must be one of stock, unpruned, profile, "),
        (["--policy", "kv:1+profile"], "The policy kv:1+profile rewrites a cache of f16 for eval: it cannot be timed."),
        (["--policy", "sieve:2/0.5"], "The policy sieve:2/0.5 is chosen by a selector of eval's: it cannot be timed."),
        (["--keep", "2"], "The policy 'keep:2' is not valid: 2 must be a share above 0 and at most 1."),
        (["--policy", "downscale"], "The policy 'downscale' is not valid: downscale is a smaller picture"),
        (["--plot", "a.pdf"], "--plot a.pdf is not valid: its name must end in .png."),
        (["a.png", "--tokens", "64"], "a.png cannot be used with --tokens, for generated pictures: leave one out."),
        (["a.png", "--no-encoder"], "a.png cannot be used with --no-encoder, for generated pictures: leave one out."),
        (["a.png", "--draw", "page"], "a.png cannot be used with --draw, for generated pictures: leave one out."),
        (["--draw", "page", "--no-encoder"], "--draw page needs the encoder: leave out --no-encoder."),
        (["a.png"], "a.png does not exist: check the name and the folder."),
        (["--stock-lib", "nowhere"], "nowhere holds no llama library: give the folder of one with --stock-lib."),
    ],
)
def test_mistakes(bench, flags: list[str], said: str) -> None:
    _, text = bench(*flags, code=2)
    assert text.splitlines()[-1].startswith(f"halfv: {said}")


def test_from_python(shapes_dir: Path) -> None:
    heard: list[Progress] = []
    model = RandomModel(shape="tiny", no_encoder=True, folder=shapes_dir)
    options = BenchOptions(keep=(0.5,), repeats=1, warm_up=1, n_decode=1, n_threads=1)
    report = run_bench(model, options=options, progress=heard.append)
    assert [row.run for row in report.rows] == ["unpruned", "profile", "keep:0.5"]
    assert [(told.done, told.total) for told in heard[1:]] == [(done, 6) for done in range(6)]
    assert json.loads(json.dumps(report.to_json()))["rows"][2]["n_kept"] == N_VISUAL // 2


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: BenchOptions(repeats=0), "repeats"),
        (lambda: BenchOptions(measurement="speed"), "measurement"),
        (lambda: RandomModel(shape="gpt"), "shape"),
        (lambda: RandomModel(shape="tiny", arch="clip"), "arch"),
        (lambda: RandomModel(shape="tiny-llava", tokens=(7,)), "tokens"),
    ],
)
def test_mistakes_from_python(make: Callable[[], object], parameter: str) -> None:
    with pytest.raises(HalfVError) as caught:
        make()
    assert caught.value.parameter == parameter


def test_no_worker_is_left_behind(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def noted(*args: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    model = RandomModel(shape="tiny", no_encoder=True, folder=shapes_dir)
    with pytest.raises(HalfVError, match="holds no llama library"):
        run_bench(model, options=BenchOptions(stock_lib=tmp_path, n_threads=1))
    assert [process.returncode for process in started] == [0]


def test_what_runs_where_is_as_in_a_chat() -> None:
    bench, chat = BenchOptions(), ModelOptions()
    for name in ("n_gpu_layers", "n_threads", "n_batch", "n_ubatch", "kv_type", "mmproj_type"):
        assert getattr(bench, name) == getattr(chat, name), name
