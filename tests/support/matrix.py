"""What works with which family of models that see, found by trying it on tiny ones: the table of docs/models.md.

python -m tests.support.matrix writes the table from this build.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import halfv_cpp
import numpy as np
from halfv_cpp import llama_h

from halfv_edge.gguf.read import Metadata, read_metadata
from halfv_edge.profile import presets
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import LOG, Client, log_text
from tests.support import ROOT, architectures, converted, pruned
from tests.support.architectures import COLS, MODES, PAGE, PREFIX, QUESTION, ROWS, TOP
from tests.support.hf_reference import SIZES, random_picture
from tests.support.mtmd_prompt import MARKER, run_prompt
from tests.support.tiny_models import grid_positions, tiny_image


class Family(NamedTuple):
    name: str
    arch: str  # of llama.cpp's own test model
    checkpoint: str = ""  # of which a tiny one is converted with its encoder, and compared with transformers


FAMILIES = (
    Family("LLaVA-1.5", "llama", "llava"),
    Family("LLaVA-NeXT Mistral", "llama", "llava_next_mistral"),
    Family("LLaVA-NeXT Vicuna", "llama", "llava_next_vicuna"),
    Family("SmolVLM", "llama", "smolvlm"),
    Family("InternVL3", "qwen2", "internvl"),
    Family("InternVL3.5", "qwen3"),
    Family("Qwen2-VL", "qwen2vl", "qwen2_vl"),
    Family("Qwen2.5-VL", "qwen2vl", "qwen2_5_vl"),
    Family("Qwen3-VL", "qwen3vl", "qwen3_vl"),
    Family("Qwen3-VL, experts", "qwen3vlmoe", "qwen3_vl_moe"),
    Family("Qwen3.5 to 3.8", "qwen35", "qwen3_5"),
    Family("Qwen3.5 to 3.8, experts", "qwen35moe"),
    Family("MiniCPM-V 4.6", "qwen35", "minicpmv4_6"),
    Family("Gemma 3", "gemma3", "gemma3"),
    Family("Gemma 3n", "gemma3n"),
    Family("Gemma 4 26B, 31B", "gemma4", "gemma4"),
    Family("Gemma 4 E2B, E4B", "gemma4", "gemma4_small"),
    Family("Gemma 4 12B", "gemma4", "gemma4_unified"),
    Family("GLM-4.1V, 4.6V-Flash", "glm4", "glm4v"),
    Family("GLM-4.5V, 4.6V", "glm4moe", "glm4v_moe"),
    Family("Mistral Small 3", "llama", "mistral3"),
    Family("Ministral 3", "mistral3"),
    Family("Mistral Medium 3.5", "mistral4"),
    Family("LFM2-VL", "lfm2", "lfm2_vl"),
    Family("PaddleOCR-VL", "paddleocr", "paddleocr_vl"),
    Family("Llama 4", "llama4"),
    Family("Kimi-VL", "deepseek2"),
    Family("Kimi K3", "kimi-k3"),
    Family("Granite Vision", "granite"),
    Family("HunyuanOCR", "hunyuan_vl"),
    Family("ERNIE 4.5 VL", "ernie4_5-moe"),
    Family("CogVLM", "cogvlm"),
    Family("Nemotron Nano VL", "nemotron_h"),
    Family("Step3-VL", "step35"),
    Family("Muse Glimmer", "muse-glimmer"),
)
HEADINGS = (
    *("family", "architecture", "memory", "pruned", "frozen", "prepare, top-up", "`input.keep`", "encoder"),
    *("numbers like", "profile"),
)
DEPTHS = {"qwen3_5": 8, "minicpmv4_6": 8}  # or only their last layer would have attention
YES, NO, UNTRIED = "yes", "no", "not tried"


def line(family: Family, program: Path, root: Path, folder: Path) -> str:
    """Its line in the table. program: save-archs; checkpoints are converted below root, once."""
    made = architectures.save(program, family.arch, folder)
    path = made[-1] if family.name.endswith("experts") else made[0]
    depth = DEPTHS.get(family.checkpoint)
    pair = converted.convert_tiny(family.checkpoint, root, depth) if family.checkpoint else None
    metadata = read_metadata(pair.text if pair else path)
    arch = metadata.text("general.architecture")
    keep, encoder = of_encoder(family.checkpoint, pair) if pair else (UNTRIED, UNTRIED)
    cells = (
        *(family.name, f"`{arch}`", memory(pair.text if pair else path, metadata)),
        *(yes(architectures.why_not(path) == ""), yes(freezes(path)), yes(prepares_and_tops_up(path))),
        *(keep, encoder, "transformers" if pair else "llama.cpp", profile(family, str(arch))),
    )
    return f"| {' | '.join(cells)} |"


def yes(found: bool) -> str:
    return YES if found else NO


def memory(path: Path, metadata: Metadata) -> str:
    arch = metadata.text("general.architecture")
    shared = f"{arch}.attention.shared_kv_layers"  # which Gemma 3n has without saying so
    LOG.clear()
    with Client(path, n_ctx=256) as client:
        kinds = {
            "recurrent layers": llama_h.llama_model_is_hybrid(client.model),
            "windows": llama_h.llama_model_n_swa(client.model) > 0,
            "latent keys": re.search(r"K \(f32\): +(?!0\.00)[\d.]+ MiB, V \(f32\): +0\.00 MiB", log_text()) is not None,
            "shared caches": arch == "gemma3n" or (shared in metadata.entries and metadata.value(shared) > 0),
        }
    return ", ".join(kind for kind, is_so in kinds.items() if is_so) or "plain"


def freezes(path: Path) -> bool:
    try:
        _told(path, MODES["freeze"], lambda _: None)
    except halfv_cpp.CallError:
        return False
    return True


def prepares_and_tops_up(path: Path) -> bool:
    """A waiting picture is prepared, and tokens that its question left out can be brought back by the next one."""
    found = []
    acts = (lambda client, do=do: found.append(do(client)) for do in (pruned.prepare, pruned.topup))
    try:
        _told(path, TOP, *acts)
    except halfv_cpp.CallError as error:
        assert error.code == halfv_cpp.HALFV_ERR_UNSUPPORTED
    return found == [pruned.OK, pruned.OK]


def _told(path: Path, profile: Mapping[str, Any], *between: Any) -> None:
    with Client(path, n_ctx=256, on_model=functools.partial(pruned.set_profile, profile=profile)) as client:
        client.text(PREFIX, logits_last=False)
        pos = grid_positions(client.next_pos[0], ROWS, COLS) if client.is_mrope else None
        client.image(tiny_image(ROWS * COLS, client.n_embd_inp), pos)
        for act in between:
            act(client)
            client.text(QUESTION)


def of_encoder(checkpoint: str, pair: converted.Pair) -> tuple[str, str]:
    """Whether fewer rows of a picture go on, and what in the encoder is done with less."""

    def rows(picture: np.ndarray, **fields: Any) -> np.ndarray:
        def set_profile(model: int) -> None:
            stages = (1, 1.0, 0.1, llama_h.llama_model_n_layer(model), 1.0, "dropped")
            halfv_cpp.set_model_profile(model, Profile(*stages, min_visual_tokens=0, **fields).to_c())

        return run_prompt(pair.text, pair.vision, picture, f"{MARKER} a", on_model=set_profile).pictures[0]

    noise = random_picture(*SIZES[checkpoint])
    whole = rows(noise)
    done = []
    metadata = read_metadata(pair.vision)
    if "clip.vision.n_wa_pattern" in metadata.entries:
        done.append("windows")
    if len(rows(np.full_like(noise, 200), pixel_tau=0)) < len(whole):
        done.append("patches")
    if not np.array_equal(rows(noise, encoder_layer=1, encoder_keep=0.5), whole):
        done.append("layers")
    return yes(len(rows(noise, input_keep=0.5)) < len(whole)), ", ".join(done) or "-"


def profile(family: Family, arch: str) -> str:
    found = presets.match(arch, [family.name], 32)
    return f"preset `{found.family}`" if found else "calibrate"


def listed() -> dict[str, str]:
    """The lines of the page by family."""
    found = _table(PAGE.read_text(encoding="utf-8")).splitlines()[2:]
    return {entry.split(" | ")[0].removeprefix("| "): entry for entry in found}


def _table(page: str) -> str:
    found = re.search(r"^\| family \|.*?(?=\n\n)", page, flags=re.MULTILINE | re.DOTALL)
    assert found, f"{PAGE} has no table of families"
    return found[0]


def lines(program: Path) -> Iterator[str]:
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|{'---|' * len(HEADINGS)}"
    with tempfile.TemporaryDirectory() as root:
        for family in FAMILIES:
            with tempfile.TemporaryDirectory() as folder:
                yield line(family, program, Path(root), Path(folder))


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = "\n".join(lines(ROOT / "build" / "py" / "bin" / "save-archs"))
    PAGE.write_text(page.replace(_table(page), table), encoding="utf-8")


if __name__ == "__main__":
    llama_h.llama_backend_init()
    main()
