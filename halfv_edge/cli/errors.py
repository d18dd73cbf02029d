"""What goes wrong in a command: its words, and its exit code. All of it is decided here."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from halfv_edge.errors import HalfVError, RunError
from halfv_edge.profile.keys import ASKED

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130
CODES = "Exit codes: 0 fine, 1 a failure while running, 2 a mistake in what was given, 130 interrupted."

# parameters of the Python API, as they are typed
FLAGS = {
    "against": "--against",
    "arch": "--arch",
    "draw": "--draw",
    "encoder_divergence": "--encoder-divergence",
    "grammar": "--grammar",
    "hub": "--hf",
    "image_max_tokens": "--image-max-tokens",
    "json_schema": "--json-schema",
    "keep": "--keep",
    "kl_tokens": "--kl-tokens",
    "kv_type": "--kv-type",
    "max_divergence": "--max-divergence",
    "max_tokens": "--max-tokens",
    "min_p": "--min-p",
    "mmproj": "--mmproj",
    "mmproj_type": "--mmproj-type",
    "model": "-m",
    "n_batch": "--batch",
    "n_ctx": "--ctx",
    "n_decode": "--decode",
    "n_gpu_layers": "--gpu-layers",
    "n_samples": "--samples",
    "n_threads": "--threads",
    "n_ubatch": "--ubatch",
    "no_encoder": "--no-encoder",
    "parts": "--try",
    "profile": "--profile",
    "repeats": "--repeats",
    "seed": "--seed",
    "shape": "--shape",
    "stock_lib": "--stock-lib",
    "target_speedup": "--target-speedup",
    "temperature": "--temp",
    "tokens": "--tokens",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "warm_up": "--warm-up",
    "work": "--work",
} | {name: key.flag for name, key in ASKED.items()}


def exit_code(error: BaseException) -> int:
    """2 when something else can be given, 1 when nothing was wrong with what was given."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return FAILURE if isinstance(error, RunError) else MISTAKE


def in_words(error: BaseException) -> str:
    """The line on stderr."""
    if isinstance(error, KeyboardInterrupt):
        return "halfv: interrupted."
    return f"halfv: {error.sentence(FLAGS) if isinstance(error, HalfVError) else error}"


def _not_a_choice(found: re.Match[str]) -> str:
    """The one that was meant, or else all."""
    given, choices = found[1], re.findall(r"[\w.-]+", found[2])
    near = difflib.get_close_matches(given.lower(), choices, 1)
    return f" '{given}' is not known: " + (f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}")


class Parser(argparse.ArgumentParser):
    """A wrong flag is one sentence as well, and not the usage of thirty flags; so for its sub-commands."""

    def error(self, message: str) -> NoReturn:
        words = message.removeprefix("argument ").replace(": ", " ", message.startswith("argument "))
        words = words.replace(" not allowed with argument ", " is not allowed with ")
        words = re.sub(r" invalid choice: '(.*)' \(choose from (.*)\)$", _not_a_choice, words)
        hint = f"`{self.prog} --help` lists the flags."
        self.exit(MISTAKE, f"halfv: {words}{' ' if words.endswith('?') else '; '}{hint}\n")
