"""`python -m training.renderers.typefaces DIR`: the fonts of this machine that can write English, cut down to ASCII.

A fifth of the families, by a sum over their name, is for tests alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

INDEX = "families.json"
NEEDED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-$%?!"
KEPT = "".join(map(chr, range(32, 127)))
# fonts whose letters are no letters, or stand for sets of other scripts
NOT_FOR_TEXT = (
    "symbol",
    "icon",
    "emoji",
    "dingbat",
    "math",
    "barcode",
    "ornament",
    "awesome",
    "initials",
    "keyboard",
    "d050000l",
)

# the fonts of the canvas's other splits, and one that was made from them
KEPT_APART = ("Lato", "Carlito", "Manrope")


def held_out(family: str) -> bool:
    """Whether training never sees this family."""
    return family.startswith(KEPT_APART) or zlib.crc32(family.encode()) % 5 == 0


def installed() -> dict[str, dict[str, str]]:
    """family -> weight ("regular", "bold") -> file, of upright fonts that fontconfig knows."""
    listing = subprocess.run(
        ["fc-list", "--format", "%{family[0]}\t%{style[0]}\t%{file}\t%{index}\n"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found: dict[str, dict[str, str]] = {}
    for line in sorted(listing.splitlines()):
        family, style, file, index = [*line.split("\t"), "", "", ""][:4]
        if not file.lower().endswith((".ttf", ".otf")) or index != "0":
            continue
        if any(word in family.lower() for word in NOT_FOR_TEXT):
            continue
        weight = {"regular": "regular", "book": "regular", "roman": "regular", "medium": "regular", "bold": "bold"}
        if style.lower() in weight:
            found.setdefault(family, {}).setdefault(weight[style.lower()], file)
    return {family: files for family, files in found.items() if "regular" in files}


def cut(source: str, target: Path) -> bool:
    """Writes the letters of ASCII alone; False where some are missing."""
    from fontTools import subset, ttLib

    try:
        font = ttLib.TTFont(source, lazy=True)
        letters = font.getBestCmap() or {}
        if any(ord(char) not in letters for char in NEEDED):
            return False
        options = subset.Options(layout_features=["kern"], hinting=False, name_IDs=[1, 2])
        cutter = subset.Subsetter(options)
        cutter.populate(text=KEPT)
        cutter.subset(font)
        font.save(target)
    except (OSError, KeyError, AttributeError, ValueError, ttLib.TTLibError) as error:
        print(f"{source}: {error}", file=sys.stderr)
        return False
    return True


@cache
def families(folder: Path, split: str) -> dict[str, tuple[Path, Path]]:
    """family -> (regular, bold) files, of those that `main` wrote; validation has those of the test."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return {
        family: (folder / regular, folder / bold)
        for family, (regular, bold) in sorted(index.items())
        if held_out(family) == (split != "train")
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.renderers.typefaces", description=__doc__)
    parser.add_argument("folder", type=Path, help="to write them to")
    parser.add_argument("--most-kb", type=int, default=60, help="of a font; larger ones are left out (%(default)d)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, tuple[str, str]] = {}
    for number, (family, files) in enumerate(sorted(installed().items())):
        names = []
        for weight, source in sorted(files.items(), reverse=True):  # regular first
            target = args.folder / f"{number:03d}-{weight}.{source[-3:].lower()}"
            if cut(source, target) and target.stat().st_size <= 1024 * args.most_kb:
                names.append(target.name)
            else:
                target.unlink(missing_ok=True)
        if names and "regular" in names[0]:
            index[family] = (names[0], names[-1])
    (args.folder / INDEX).write_text(json.dumps(index, indent=0), encoding="utf-8")
    print(f"{len(index)} families, {sum(map(held_out, index))} of them for tests alone", file=sys.stderr)


if __name__ == "__main__":
    main()
