"""Random conversations, by hand.

python -m tests.support.conversations --seeds 1000:2000    these seeds, each in a process of its own
python -m tests.support.conversations --seeds 17 --shrink  a failing one, made as small as it will go
python -m tests.support.conversations --script FILE        one that was printed before
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import sys
import tempfile
import time
import traceback

from halfv_cpp import library

library.load()

from .player import DisagreementError, Player  # noqa: E402
from .script import Script, Writer  # noqa: E402
from .teller import Model  # noqa: E402


class Stage:
    """Loads each model once; plays every script in a child process, so that an abort is only one more failure."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.models: dict[tuple[str, str], Model] = {}

    def play(self, script: Script) -> str:
        """What went wrong, or ''."""
        key = script.setting["arch"], script.setting["profile"]
        if key not in self.models:
            self.models[key] = Model.load(self.folder, *key)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                words = self.play_here(script, self.models[key])
            except BaseException:
                words = traceback.format_exc()
            os.write(write, words.encode()[:60000])
            os._exit(0)
        os.close(write)
        with open(read, "rb") as pipe:
            words = pipe.read().decode()
        _, status = os.waitpid(child, 0)
        return words or (f"the process died of signal {os.WTERMSIG(status)}" if status else "")

    @staticmethod
    def play_here(script: Script, model: Model) -> str:
        player = Player(model, script)
        try:
            player.play(script.steps)
        except DisagreementError as difference:
            return str(difference)
        finally:
            player.close()
        return ""


def shrink(stage: Stage, script: Script) -> Script:
    """Leave out what is not needed to fail: halves first, then single steps."""
    size = len(script.steps)
    while size >= 1:
        at = 0
        while at < len(script.steps):
            fewer = Script(script.setting, script.steps[:at] + script.steps[at + size :])
            if stage.play(fewer):
                script = fewer
            else:
                at += size
        size //= 2
    for key, value in (("n_batch", 128), ("n_ubatch", 128), ("n_ctx", 1024), ("arch", "llama"), ("profile", "freeze")):
        simpler = Script(script.setting | {key: value}, script.steps)
        if stage.play(simpler):
            script = simpler
    return script


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.conversations", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:200", help="one, or FIRST:END")
    parser.add_argument("--seconds", type=float, default=0, help="stop after this long")
    parser.add_argument("--script", type=pathlib.Path, help="play this script instead")
    parser.add_argument("--shrink", action="store_true", help="make failing scripts small")
    parser.add_argument("--keep-all", action="store_true", help="without removing anything but whole sequences")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many (0: never)")
    args = parser.parse_args()
    start = time.monotonic()
    failures: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(pathlib.Path(folder))
        if args.script:
            script = Script.parse(args.script.read_text())
            words = stage.play(script)
            print(words or "no difference")
            if words and args.shrink:
                print(shrink(stage, script).dump())
            return 1 if words else 0
        first, _, end = args.seeds.partition(":")
        seeds = range(int(first), int(end or int(first) + 1))
        n = 0
        for seed in seeds:
            if args.seconds and time.monotonic() - start > args.seconds:
                break
            script = Writer(seed, args.keep_all).write()
            words = stage.play(script)
            n += 1
            if words:
                failures[words[:60]] += 1
                print(f"seed {seed}: {words}")
                if args.shrink:
                    small = shrink(stage, script)
                    print(stage.play(small))
                    print(small.dump(), flush=True)
                if failures.total() == args.failures:
                    break
    print(f"{n} conversations in {time.monotonic() - start:.0f} s, {failures.total()} failed", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
