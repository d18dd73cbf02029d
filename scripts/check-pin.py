#!/usr/bin/env python3
"""Is there a newer llama-cpp-python, and do our patches still apply to the llama.cpp inside it?

python scripts/check-pin.py [VERSION]

Exit code 0: the pin is the newest, or all patches apply to the newer one. 1: some do not. 2: it could not be found out.
docs/releasing.md says how the pin is moved.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python"


class CheckError(Exception):
    """It could not be found out."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the patches against a newer llama-cpp-python.")
    parser.add_argument("version", nargs="?", help="which one; the newest there is")
    args = parser.parse_args()
    try:
        pinned = pin("VERSION")
        version = args.version or newest()
        if version == pinned and not args.version:
            print(f"{PACKAGE} {pinned} is pinned, and is the newest.")
            return 0
        with tempfile.TemporaryDirectory() as folder:
            refused = failing(Path(folder), version)
    except CheckError as error:
        print(f"check-pin: {error}", file=sys.stderr)
        return 2
    if not refused:
        print(f"Every patch applies to {PACKAGE} {version} ({pinned} is pinned).")
        return 0
    print(f"{PACKAGE} {version} ({pinned} is pinned): patches that do not apply:")
    for name, why in refused.items():
        print(f"  {name}: {why}")
    return 1


def pin(name: str) -> str:
    """A value of cmake/pin.cmake, the one place for it."""
    match = re.search(rf"set\(HALFV_PIN_{name} (\S+)\)", (ROOT / "cmake/pin.cmake").read_text())
    if not match:
        raise CheckError(f"cmake/pin.cmake does not set HALFV_PIN_{name}.")
    return match[1]


def newest() -> str:
    match = re.search(r"\(([\w.]+)\)", _run([sys.executable, "-m", "pip", "index", "versions", PACKAGE]))
    if not match:
        raise CheckError(f"pip does not say which version of {PACKAGE} is the newest.")
    return match[1]


def failing(folder: Path, version: str) -> dict[str, str]:
    """The patches that do not apply to that version, one behind the other, and git's words."""
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", PACKAGE, "-d", str(folder)]
    _run([*download, f"{PACKAGE}=={version}"])
    sdists = list(folder.glob("*.tar.gz"))
    if len(sdists) != 1:
        raise CheckError(f"pip downloaded {len(sdists)} sdists of {PACKAGE} {version}, and one was expected.")
    patches = sorted((ROOT / "native/patches").glob("*.patch"))
    wanted = {name for patch in patches for name in re.findall(r"^--- a/(\S+)", patch.read_text(), re.MULTILINE)}
    tree = folder / "tree"
    with tarfile.open(sdists[0]) as archive:
        for member in archive:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            if name in wanted and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_bytes(content.read())
    if not tree.is_dir():
        raise CheckError(f"the sdist of {PACKAGE} {version} has none of the files that the patches change.")
    refused = {}
    for patch in patches:
        command = ["git", "apply", str(patch)]
        done = subprocess.run(command, cwd=tree, env=_alone(folder), capture_output=True, text=True)
        if done.returncode:
            refused[patch.name] = done.stderr.strip().splitlines()[0].removeprefix("error: ")
    return refused


def _alone(folder: Path) -> dict[str, str]:
    """So that git finds no repository above the folder, to which it would relate the paths."""
    return os.environ | {"GIT_CEILING_DIRECTORIES": str(folder)}


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CheckError(f"{command[0]} cannot be run: {error.strerror}.") from error
    if done.returncode:
        words = done.stderr.strip().splitlines()
        raise CheckError(f"`{' '.join(command[2:])}` failed: {words[-1] if words else done.returncode}.")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
