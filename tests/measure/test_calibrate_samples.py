"""The pictures to calibrate with, and the file that keeps results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from halfv_edge.errors import HalfVError
from halfv_edge.measure.calibrate import pictures, samples
from halfv_edge.measure.work_file import WorkFile
from tests.support.vlm import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures, two that cannot be read, and something else."""
    for number in range(6):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_folder(folder: Path) -> None:
    skipped: list[str] = []
    found = samples.find_samples(folder, say=skipped.append)
    assert sorted(Path(sample.name).name for sample in found.samples) == [f"{number}.png" for number in range(6)]
    assert found.source == folder.name
    assert len(skipped) == 2
    assert any("empty.png is empty" in why for why in skipped)
    assert {sample.question for sample in found.samples} <= set(samples.QUESTIONS)
    assert found.samples[0].load().image.size == (420, 300)


def test_a_seed_chooses(folder: Path) -> None:
    def names(seed: int) -> list[str]:
        return [sample.name for sample in samples.find_samples(folder, n_samples=4, seed=seed).samples]

    assert names(0) == names(0)
    assert len(names(0)) == 4
    assert any(names(0) != names(seed) for seed in range(1, 4))


def test_a_jsonl_file(folder: Path) -> None:
    lines = [{"image": f"{number}.png", "question": f"how many are {number}"} for number in range(4)]
    lines += [{"image": "0.png", "more": 1}, {"image": "missing.png", "question": "where"}]
    listed = folder / "list.jsonl"
    listed.write_text("\ufeff" + "\n".join(map(json.dumps, lines)) + "\n\n")
    skipped: list[str] = []
    found = samples.find_samples(listed, say=skipped.append)
    assert found.source == "list.jsonl"
    assert len(found) == 5
    assert f"{folder / 'missing.png'} does not exist" in skipped[0]
    asked = {Path(sample.name).name: sample.question for sample in found.samples if sample.question.startswith("how")}
    assert asked == {f"{number}.png": f"how many are {number}" for number in range(4)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"image": "0.png"}\n{"image": 3}', 'line 2 is {"image":3}: it must be like'),
        ('{"image": "0.png", "question": 7}', "line 1 is"),
        ('["0.png"]', 'line 1 is ["0.png"]'),
        ("0.png, what is it", "line 1 is not JSON"),
        ("\xff\xfe", "line 1 is not JSON"),
        ('{"image": "0.png"}', "has 1 usable pictures: calibration needs at least 4"),
        ("", "has 0 usable pictures"),
    ],
)
def test_bad_lines(text: str, words: str, folder: Path) -> None:
    listed = folder / "list.jsonl"
    listed.write_text(text, "latin-1")
    with pytest.raises(HalfVError) as caught:
        samples.find_samples(listed)
    assert words in str(caught.value)
    assert str(listed) in str(caught.value)


def test_bad_places(folder: Path) -> None:
    with pytest.raises(HalfVError, match="nowhere does not exist"):
        samples.find_samples(folder / "nowhere")
    with pytest.raises(HalfVError, match=r"0\.png is one picture"):
        samples.find_samples(folder / "0.png")
    for number in range(4):
        (folder / f"{number}.png").unlink()
    with pytest.raises(HalfVError, match="2 usable pictures, and 2 more cannot be read"):
        samples.find_samples(folder)


def test_generated_pictures() -> None:
    made = pictures.generate(8, 0)
    again = pictures.generate(8, 0)
    other = pictures.generate(8, 1)
    assert len({question for _, _, question in made}) == 4
    for (name, image, _), (_, same, _), (_, different, _) in zip(made, again, other, strict=True):
        assert image.size == (pictures.SIDE, pictures.SIDE)
        assert image.tobytes() == same.tobytes() != different.tobytes(), name
        assert np.asarray(image).std() > 10, name
    found = samples.find_samples(n_samples=5)
    assert [sample.load().image.tobytes() for sample in found.samples] == [image.tobytes() for _, image, _ in made[:5]]
    assert found.source == samples.GENERATED


# --- results on the disk ---

SETTINGS = {"model": ["tiny", 7], "seed": 0}


def filled(path: Path) -> WorkFile:
    work = WorkFile(path, SETTINGS)
    work.add("observe 0", {"visual": [1.5, 2.25]})
    work.add("observe 1", [0.1])
    work.close()
    return work


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "p.calibration"
    results = filled(path).results
    work = WorkFile(path, SETTINGS)
    assert work.results == results == {"observe 0": {"visual": [1.5, 2.25]}, "observe 1": [0.1]}
    work.add("check", 3)
    work.close()
    assert WorkFile(path, SETTINGS).results == results | {"check": 3}


def test_results_of_other_settings_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "p.calibration"
    filled(path)
    work = WorkFile(path, SETTINGS | {"seed": 1})
    assert work.results == {}
    work.close()
    assert len(path.read_text().splitlines()) == 1


def test_a_file_cut_anywhere_gives_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.calibration"
    filled(path)
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        work = WorkFile(path, SETTINGS)
        assert len(work.results) == max(0, sum(end <= cut for end in ends) - 1)
        work.add("next", cut)
        work.close()
        assert WorkFile(path, SETTINGS).results["next"] == cut


@pytest.mark.parametrize("raw", [b"\x00\xff\n", b"[]\n", b'{"halfv_calibration": 1}\n', b"\n\n"])
def test_another_file_is_replaced(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.calibration"
    path.write_bytes(raw)
    assert WorkFile(path, SETTINGS).results == {}


def test_damaged_results_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "p.calibration"
    filled(path)
    path.write_bytes(path.read_bytes() + b'{"key": "a"}\n{"key": "b", "value": 2}\n')
    assert len(WorkFile(path, SETTINGS).results) == 2


def test_no_place_for_results(tmp_path: Path) -> None:
    with pytest.raises(HalfVError, match="cannot be used to keep results"):
        WorkFile(tmp_path, SETTINGS)
