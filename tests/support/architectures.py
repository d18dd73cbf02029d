"""Every architecture of llama.cpp as a tiny random model, and what HalfV does with it.

python -m tests.support.architectures writes the lists of docs/models.md, and the number in the README, from this build.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import halfv_cpp
import numpy as np
from halfv_cpp import halfv_compare_h, llama_h

from halfv_edge.testing.client import Client
from tests.support import ROOT, pruned
from tests.support.masking import Masking
from tests.support.relayed import Relay
from tests.support.tiny_models import DROP, grid_positions, tiny_image

PAGE = ROOT / "docs" / "models.md"
PREFIX, QUESTION, NEXT_TOKENS = [1, 5, 6, 7], list(range(60, 72)), [7, 90, 42]
ROWS, COLS = 6, 8

TOP = DROP | {"min_visual_tokens": 8}
MODES = {
    "freeze": TOP | {"ssr.update": 0.0, "ssr.rest": "frozen"},
    "freeze-and-update": TOP | {"ssr.rest": "frozen"},
    "top": TOP,
}
WHOLE = TOP | {"min_visual_tokens": 1000}  # through all three stages, nothing pruned


def names(program: Path) -> list[str]:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()


def save(program: Path, name: str, folder: Path) -> list[Path]:
    """The dense model, the one of experts, or both."""
    subprocess.run([program, folder, name], capture_output=True, text=True, check=True)
    return sorted(folder.glob("*.gguf"))


def why_not(path: Path) -> str:
    """Why it runs unpruned; "" when it is pruned."""
    with Client(path, n_ctx=256) as client:
        if halfv_cpp.halfv_model_supported(client.model):
            return ""
        try:
            pruned.set_profile(client.model, TOP)
        except halfv_cpp.CallError as error:
            return str(error).split(": ")[-1]
    raise AssertionError(f"{path}: not supported, and takes a profile")


def tell(client: Client, masking: Masking | None = None, causal: bool = True) -> np.ndarray:
    """Text, a picture, a question: the logits at its end and of some tokens more."""
    begin = masking.begin if masking else lambda _: None
    begin(len(PREFIX))
    client.text(PREFIX, logits_last=False)
    begin(ROWS * COLS)
    pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
    llama_h.llama_set_causal_attn(client.ctx, causal)
    client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
    llama_h.llama_set_causal_attn(client.ctx, True)
    begin(len(QUESTION))
    client.text(QUESTION)
    logits = [client.logits().copy()]
    for token in NEXT_TOKENS:
        begin(1)
        logits.append(client.decode(token).copy())
    return np.stack(logits)


def masking_of(profile: dict, kept: list[int], deep: list[int]) -> Masking:
    """The same prompt, when these tokens of the picture reach stages II and III."""
    first = len(PREFIX)
    gone = [first + index for index in range(ROWS * COLS) if index not in kept]
    rest = [first + index for index in kept if index not in deep]
    if profile["ssr.rest"] == "dropped":
        return Masking({profile["ivr.layer"]: gone, profile["ssr.layer"]: gone + rest}, {})
    return Masking({profile["ivr.layer"]: gone}, {profile["ssr.layer"]: rest})


def told(
    path: Path, profile: dict | None = None, masking: Masking | None = None, causal: bool = True
) -> tuple[np.ndarray, list[list[int]]]:
    """Logits, and the tokens of the picture that reached stages II and III."""
    with Client(
        path,
        n_ctx=256,
        on_model=lambda model: pruned.set_profile(model, profile) if profile else None,
        on_tensor=masking.callback if masking else None,
    ) as client:
        logits = tell(client, masking, causal)
        return logits, [list(pruned.kept(client, 0, stage)) for stage in (2, 3)] if profile else []


def observed(path: Path) -> np.ndarray | None:
    """The logits at the end of the question, layer by layer; None where that is not offered."""
    found = []

    @halfv_compare_h.halfv_observer
    def observe(pointer: Any, _user: object) -> bool:
        at = pointer.contents
        if at.logits:
            found.append(np.ctypeslib.as_array(at.logits, (at.n_vocab,)).copy())
        return True

    with Client(path, n_ctx=256, on_model=lambda model: pruned.set_profile(model, WHOLE)) as client:
        halfv_cpp.check(halfv_compare_h.halfv_hold(client.ctx, True))
        client.text(PREFIX, logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        client.text(QUESTION, logits_last=False)
        code = halfv_compare_h.halfv_observe(client.ctx, None, observe, None)
        if code == halfv_cpp.HALFV_ERR_UNSUPPORTED:
            return None
        halfv_cpp.check(code)
    return found[-1]


def relayed(path: Path, profile: dict, kept: list[int], deep: list[int]) -> np.ndarray:
    """What told() gives, when these tokens of the picture reach stages II and III, and the rest is dropped."""
    relay = Relay(path, profile["ivr.layer"], profile["ssr.layer"])
    relay.text(PREFIX)
    pos = grid_positions(relay.next, ROWS, COLS) if relay.is_mrope else np.arange(relay.next, relay.next + ROWS * COLS)
    relay.image(tiny_image(ROWS * COLS, relay.legs[0].client.n_embd_inp), pos, kept, deep)
    logits = [relay.text(QUESTION), *(relay.text([token]) for token in NEXT_TOKENS)]
    relay.close()
    return np.stack(logits)


def on_a_device(build_dir: Path, path: Path) -> dict[str, Any]:
    """Conversations told to a pretended device, in a process of its own, and how they differ from those on the host."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.drive_states", str(build_dir), str(path)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "HALFV_STATES"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def is_hybrid(path: Path) -> bool:
    with Client(path, n_ctx=256) as client:
        return bool(llama_h.llama_model_is_hybrid(client.model))


def listed() -> dict[str, str]:
    """What docs/models.md says: why each architecture runs unpruned, "" for those that are pruned."""
    text = PAGE.read_text(encoding="utf-8")
    pruned_part, unpruned_part = re.split(r"^## .*unpruned$", text, flags=re.MULTILINE)
    pruned_part = re.split(r"^## Pruned$", pruned_part, flags=re.MULTILINE)[1]
    unpruned_part = unpruned_part.partition("\n## ")[0]
    result = dict.fromkeys(re.findall(r"`([^`]+)`", pruned_part), "")
    for reason, archs in re.findall(r"^- (.*?): ((?:`[^`]+`[,\s]*)+)", unpruned_part, flags=re.MULTILINE):
        result |= dict.fromkeys(re.findall(r"`([^`]+)`", archs), reason)
    return result


def _wrapped(text: str, indent: str = "") -> Iterator[str]:
    line = ""
    for word in text.split():
        if len(line) + len(word) > 126:
            yield line
            line = indent
        line += word if line in ("", indent) else " " + word
    yield line


def main() -> None:
    program = ROOT / "build" / "py" / "bin" / "save-archs"
    reasons = collections.defaultdict(list)
    for name in names(program):
        with tempfile.TemporaryDirectory() as folder:
            reasons[why_not(save(program, name, Path(folder))[0])].append(f"`{name}`")
    found = reasons.pop("")
    refused = (f"- {reason}: {', '.join(archs)}" for reason, archs in reasons.items())
    _replace(PAGE, r"(?<=^## Pruned\n)`.*?(?=\n\n)", "\n".join(_wrapped(", ".join(found))))
    _replace(PAGE, r"^- its memory .*?(?=\n\n)", "\n".join(line for entry in refused for line in _wrapped(entry, "  ")))
    _replace(ROOT / "README.md", r"\d+(?= of llama\.cpp's)", str(len(found)))


def _replace(page: Path, pattern: str, text: str) -> None:
    changed, n = re.subn(pattern, lambda _: text, page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert n == 1, f"{page}: {pattern} is there {n} times"
    page.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    llama_h.llama_backend_init()
    main()
