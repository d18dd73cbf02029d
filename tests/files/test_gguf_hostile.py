"""Bad files: each is one sentence, in bounded memory and time, never a traceback; and C++ stands as well."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import halfv_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfv_edge.cli import profile as cli_profile
from halfv_edge.cli.main import main
from halfv_edge.errors import HalfVError
from halfv_edge.gguf.read import STRING, read_metadata
from halfv_edge.gguf.write import replace_keys
from halfv_edge.profile import resolve, stored
from halfv_edge.profile.model_file import ModelFile
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client
from tests.support import limited
from tests.support.gguf_bytes import MODEL, PROFILE, TENSORS, gguf, header, pair, text, u32, u64
from tests.support.tiny_models import make_tiny

WHOLE = gguf([*MODEL, *PROFILE], TENSORS)
GIB = 1 << 30


def one_key(raw: bytes) -> bytes:
    return header(0, 1) + raw


def array_of(item_type: int, count: int) -> bytes:
    return one_key(text("a") + u32(9) + u32(item_type) + u64(count))


def one_tensor(info: bytes) -> bytes:
    return header(1, 0) + info


BAD = {
    # the header
    "empty": (b"", "is empty: it is not a GGUF file."),
    "two bytes": (b"GG", "is not a GGUF file: it begins with b'GG', not b'GGUF'."),
    "other magic": (b"PK\x03\x04" + WHOLE[4:], r"is not a GGUF file: it begins with b'PK\x03\x04', not b'GGUF'."),
    "older kind": (b"ggjt" + WHOLE[4:], "is not a GGUF file: it begins with b'ggjt', not b'GGUF'."),
    "magic alone": (b"GGUF", "is cut short or damaged: it ends at byte 4, inside its metadata; get it again."),
    "version 0": (header(0, 0, 0), "is a GGUF of version 0: versions 2 and 3 can be read."),
    "version 1": (header(0, 0, 1), "is a GGUF of version 1: versions 2 and 3 can be read."),
    "version 4": (header(0, 0, 4), "is a GGUF of version 4: versions 2 and 3 can be read."),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "is a big-endian GGUF: only little-endian ones can be read.",
    ),
    # counts
    "keys without end": (header(0, 1 << 63), "is damaged: it claims 9223372036854775808 keys, more than 65536;"),
    "one key too many": (header(0, 65537), "is damaged: it claims 65537 keys, more than 65536; get it again."),
    "tensors without end": (
        header(2**64 - 1, 0),
        "is damaged: it claims 18446744073709551615 tensors, more than 262144",
    ),
    "keys that are not there": (header(0, 65536), "is cut short or damaged: it ends at byte 24, inside a key; get it"),
    "tensors that are not there": (
        header(9, 0),
        "is cut short or damaged: it ends at byte 24, inside a tensor's name;",
    ),
    # keys
    "key without end": (
        one_key(u64(2**64 - 1)),
        "is damaged: a key claims 18446744073709551615 bytes, more than 65535",
    ),
    "key cut off": (
        one_key(u64(9) + b"abc"),
        "is cut short or damaged: it ends at byte 35, inside a key; get it again.",
    ),
    "key without letters": (one_key(pair("", "u32", 1)), "is damaged: a key is empty; get it again."),
    "key that is no text": (
        one_key(pair(b"\xff\xfe", "u32", 1)),
        r"is damaged: the key b'\xff\xfe' is not text; get it",
    ),
    "key that draws": (
        header(0, 2) + 2 * pair("\x1b[2J", "u8", 1),
        r'is damaged: the key "\u001b[2J" is there twice; get it again.',
    ),
    "profile twice": (gguf([*MODEL, *PROFILE, PROFILE[2]]), 'is damaged: the key "halfv.ivr.keep" is there twice; get'),
    # values
    "unknown type": (one_key(text("a") + u32(13) + u64(0)), 'is damaged: "a" is of the unknown type 13; get it again.'),
    "list of lists": (array_of(9, 0), 'is damaged: "a" is of the unknown type 9; get it again.'),
    "text without end": (
        one_key(text("a") + u32(8) + u64(1 << 62)),
        'inside "a", 4611686018427387904 bytes; get it again.',
    ),
    "list without end": (array_of(12, 1 << 61), 'inside "a", 2305843009213693952 values; get it again.'),
    "list that wraps round": (array_of(10, 1 << 61), 'inside "a", 2305843009213693952 values; get it again.'),
    "texts without end": (array_of(8, 2**64 - 1), "is damaged: it claims more than 4194304 strings; get it again."),
    "texts that are not there": (array_of(8, 1 << 20), 'inside "a", 1048576 strings; get it again.'),
    "texts with one too long": (array_of(8, 2) + text("b") + u64(1 << 40), 'inside a string of "a"; get it again.'),
    "alignment 0": (
        gguf([pair("general.alignment", "u32", 0)]),
        "general.alignment = 0 is not a power of two up to 10",
    ),
    "alignment 24": (
        gguf([pair("general.alignment", "u32", 24)]),
        "general.alignment = 24 is not a power of two up to",
    ),
    "alignment 2 GiB": (gguf([pair("general.alignment", "u32", 1 << 31)]), "general.alignment = 2147483648 is not a "),
    "alignment as text": (gguf([pair("general.alignment", "str", "32")]), "general.alignment is of type str, not u32;"),
    # tensors
    "tensor with a long name": (
        one_tensor(text("t" * 64)),
        "is damaged: a tensor's name claims 64 bytes, more than 63;",
    ),
    "tensor of 5 dimensions": (
        one_tensor(text("t") + u32(5)),
        'is damaged: the tensor "t" has 5 dimensions, more than 4',
    ),
    "tensor without a shape": (one_tensor(text("t") + u32(4)), "inside a tensor's shape; get it again."),
    "tensor far away": (
        one_tensor(text("t") + u32(1) + u64(1) + u32(0) + u64(1 << 63)) + bytes(99),
        'before the tensor "t" at byte 9223372036854775872; get it again.',
    ),
    "no tensor data": (gguf(MODEL, [("t", bytes(64)), ("u", bytes(64))])[:-128], 'before the tensor "u" at byte '),
}


@contextlib.contextmanager
def bounded(mib: float, seconds: float) -> Iterator[None]:
    tracemalloc.start()
    before = time.monotonic()
    try:
        yield
        assert time.monotonic() - before < seconds
        assert tracemalloc.get_traced_memory()[1] < mib * (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, sentence = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with bounded(mib=1, seconds=5):
        assert main(["profile", "show", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"halfv: {path} ")
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_every_truncation(tmp_path: Path) -> None:
    """Up to where the last tensor begins; whether a tensor's own bytes are all there is llama.cpp's to check."""
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE)
    last = WHOLE.rindex(TENSORS[1][1])
    for size in range(len(WHOLE), -1, -1):
        os.truncate(path, size)
        if size < last:
            with pytest.raises(HalfVError):
                ModelFile.read(path)
        else:
            assert stored.read_gguf(ModelFile.read(path)) is not None


SPARSE = {
    "strings": array_of(8, (1 << 22) - 2),
    "bytes": array_of(0, 4 * GIB),
    "tensors": header(1 << 18, 0),
}


@pytest.mark.parametrize("name", SPARSE)
def test_large_claims_that_the_file_bears_out(name: str, tmp_path: Path) -> None:
    """5 GiB of zeros are as many empty strings and nameless tensors as one likes: read in seconds, in little memory."""
    path = tmp_path / "large.gguf"
    with path.open("wb") as file:
        file.write(SPARSE[name])
        file.truncate(5 * GIB)
    before = time.monotonic()
    done = limited.halfv("profile", "show", path, memory_mib=128)
    assert time.monotonic() - before < 60
    assert done.stderr == f"halfv: {path} has no general.architecture: a profile belongs in a language model's GGUF.\n"


def test_long_values_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    keys = [key for key in PROFILE if b"ssr.rest" not in key]
    long = pair("halfv.ssr.rest", "str", "x" * (2 << 20)), pair("general.name", "str", "y" * (2 << 20))
    path.write_bytes(gguf([MODEL[0], MODEL[2], *keys, *long], TENSORS))
    with bounded(mib=1, seconds=5):
        model = ModelFile.read(path)
        assert model.names == ()
        with pytest.raises(HalfVError, match=r"halfv\.ssr\.rest is a str value that is too long to read"):
            stored.read_gguf(model)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so a test of permissions is somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def no_permission(path: Path) -> None:
    path.write_bytes(WHOLE)
    path.chmod(0)


NOT_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "cannot be read: No such file or directory."),
    "a folder": (Path.mkdir, "is a folder: name the file in it."),
    "a pipe": (os.mkfifo, "is not a regular file."),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file or directory."),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links."),
    "not ours to read": (no_permission, "cannot be read: Permission denied."),
}


@pytest.mark.parametrize("name", NOT_FILES)
def test_not_a_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, sentence = NOT_FILES[name]
    path = tmp_path / "model.gguf"
    make(path)
    with as_nobody() if make is no_permission else contextlib.nullcontext():
        assert main(["profile", "show", str(path)]) == 2
    assert capsys.readouterr().err == f"halfv: {path} {sentence}\n"


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE)
    model = ModelFile.read(path)
    path.write_bytes(WHOLE[:-1])
    with pytest.raises(HalfVError, match="changed while it was read"):
        replace_keys(model.metadata, "halfv.", {}, tmp_path / "out.gguf")
    path.write_bytes(WHOLE[:60])
    with pytest.raises(HalfVError, match="changed while it was read"):
        stored.read_gguf(model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_a_file_that_grows(tmp_path: Path) -> None:
    """What was read of it may be wrong, though every byte that it had is still there."""
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE)
    model = ModelFile.read(path)
    path.write_bytes(WHOLE + b"more")
    with pytest.raises(HalfVError, match="changed while it was read"):
        replace_keys(model.metadata, "halfv.", {}, tmp_path / "out.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_text_of_a_file_is_shown_harmlessly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    name = pair("general.name", "str", b"\x1b]0;owned\x07\xff\n\xe2\x80\xaex")
    path.write_bytes(gguf([MODEL[0], name, MODEL[2], *PROFILE], TENSORS))
    assert main(["profile", "show", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert len(out.splitlines()) == 5


# random damage


def in_peace(path: Path) -> None:
    """Everything that reads a model's file either works or says one sentence."""
    try:
        model = ModelFile.read(path)
        cli_profile.as_text(model, resolve.find_profile(model))
        stored.notes(model)
    except HalfVError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000


flips = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=8)


@settings(deadline=None, max_examples=300)
@given(flips, st.integers(0, len(WHOLE)))
def test_flipped_bytes(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], size: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    raw = bytearray(WHOLE)
    for at, bits in flips:
        raw[at] ^= bits
    for damaged in (raw, raw[:size]):
        path.write_bytes(damaged)
        in_peace(path)


@settings(deadline=None, max_examples=100)
@given(flips)
def test_rewriting_what_can_be_read(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    """A rewritten file is one that can be read, whatever was in it."""
    folder = tmp_path_factory.getbasetemp()
    raw = bytearray(WHOLE)
    for at, bits in flips:
        raw[at] ^= bits
    source, target = folder / "flipped.gguf", folder / "written.gguf"
    source.write_bytes(raw)
    try:
        model = ModelFile.read(source)
    except HalfVError:
        return
    wanted = Profile.default(max(model.n_layer, 2))
    replace_keys(model.metadata, "halfv.", wanted.to_gguf(), target, progress=False)
    again = read_metadata(target)
    assert [key for key in again.entries if not key.startswith("halfv.")] == [
        key for key in model.metadata.entries if not key.startswith("halfv.")
    ]
    assert target.read_bytes()[again.data :] == source.read_bytes()[model.metadata.data :]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    for start in (b"", WHOLE[:24], WHOLE[:60]):
        path.write_bytes(start + raw)
        in_peace(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
keys = st.sampled_from(
    ["version", "ivr", "ssr", "layer", "keep", "anchors", "update", "rest", "samples", "calibration"]
)
objects = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=4), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(objects, st.booleans())
def test_any_json(value: object, on_top: bool) -> None:
    if on_top and isinstance(value, dict):
        value = Profile.default(6).to_json() | value
    with contextlib.suppress(HalfVError):
        Profile.from_json(json.loads(json.dumps(value))).validate(6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = make_tiny(tmp_path_factory.mktemp("hostile") / "model.gguf", "llama", n_layer=6)
    replace_keys(read_metadata(path), "halfv.", Profile(2, 0.5, 0.2, 4, 0.1, "dropped").to_gguf(), path)
    return path, path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_both_readers_say_the_same_of_damaged_values(model: tuple[Path, bytes], data: st.DataObject) -> None:
    """Bytes of the values of halfv.* change; the rest of the file is upstream's to read."""
    path, raw = model
    path.write_bytes(raw)
    values = [entry for key, entry in read_metadata(path).entries.items() if key.startswith("halfv.")]
    entry = data.draw(st.sampled_from(values))
    size = entry.end - entry.value
    printable = st.text(st.characters(min_codepoint=35, max_codepoint=91), min_size=size, max_size=size).map(str.encode)
    new = data.draw(printable if entry.type == STRING else st.binary(min_size=size, max_size=size))
    path.write_bytes(raw[: entry.value] + new + raw[entry.end :])

    try:
        ours: object = stored.read_gguf(ModelFile.read(path))
    except HalfVError as error:
        ours = str(error).replace(str(path), "halfv")
    theirs: list[object] = []

    def ask(loaded: int) -> None:
        try:
            theirs.append(Profile.from_c(halfv_cpp.model_profile(loaded)))
        except halfv_cpp.CallError as error:
            theirs.append(str(error).replace("-nan", "nan"))

    with contextlib.suppress(RuntimeError), Client(path, on_model=ask):
        assert isinstance(ours, Profile)
    assert theirs == [ours]
