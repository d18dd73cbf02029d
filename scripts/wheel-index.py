#!/usr/bin/env python3
"""Makes a package index (PEP 503, with PEP 658 metadata) out of built wheels, for any host of static files.

python scripts/wheel-index.py OUT cpu=dist/cpu vulkan=dist/vulkan ...

OUT/cpu/ is then an index of its own: `pip install halfv-edge --extra-index-url https://HOST/cpu/`. Only the standard
library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import os
import re
import shutil
import sys
import tempfile
import zipfile
from email.parser import BytesParser
from pathlib import Path
from urllib.parse import quote

WHEEL_NAME = re.compile(r"(?P<name>[A-Za-z0-9._]+)-(?P<version>[^-]+)(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
PAGE = """<!DOCTYPE html>
<html><head><meta name="pypi:repository-version" content="1.0"><title>{title}</title></head>
<body>
{links}
</body></html>
"""


class WheelError(Exception):
    """A file that no index should offer."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a static package index out of built wheels.")
    parser.add_argument("out", type=Path, help="the folder to make; an index that is there is replaced")
    parser.add_argument("backends", nargs="+", metavar="NAME=FOLDER", help="cpu=dist/cpu: its wheels, under OUT/cpu/")
    args = parser.parse_args(argv)
    try:
        count = make_index(args.out, dict(_pair(text) for text in args.backends))
    except (WheelError, OSError) as error:
        print(f"wheel-index: {error}", file=sys.stderr)
        return 2
    print(f"wheel-index: {count} wheels in {args.out}.", file=sys.stderr)
    return 0


def _pair(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise WheelError(f"{text!r} is not valid: it must be like cpu=dist/cpu.")
    return name, Path(folder)


def make_index(out: Path, backends: dict[str, Path]) -> int:
    """Build beside the old index and take its place at the end, so that a failure leaves the old one.

    Returns:
        How many wheels it offers.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        work.chmod(0o755)
        count = sum(_backend(work / name, folder) for name, folder in backends.items())
        _page(work / "index.html", "HalfV Edge wheels", [_link(f"{name}/", name) for name in sorted(backends)])
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return count


def _backend(place: Path, folder: Path) -> int:
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise WheelError(f"{folder} holds no wheels: build them with `make wheel`.")
    projects: dict[str, list[Path]] = {}
    for wheel in wheels:
        match = WHEEL_NAME.fullmatch(wheel.name)
        if not match:
            raise WheelError(f"{wheel} is not named as a wheel is.")
        projects.setdefault(re.sub(r"[-_.]+", "-", match["name"]).lower(), []).append(wheel)
    for project, files in projects.items():
        (place / project).mkdir(parents=True)
        _page(place / project / "index.html", project, [_offer(place / project, wheel) for wheel in files])
    _page(place / "index.html", place.name, [_link(f"{project}/", project) for project in sorted(projects)])
    return len(wheels)


def _offer(place: Path, wheel: Path) -> str:
    """Copy a wheel and its metadata; the link to it, with hashes that pip checks."""
    shutil.copyfile(wheel, place / wheel.name)
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
            if len(names) != 1:
                raise WheelError(f"{wheel} has {len(names)} METADATA files, and a wheel has one.")
            metadata = archive.read(names[0])
    except zipfile.BadZipFile as error:
        raise WheelError(f"{wheel} is no wheel: {error}.") from error
    (place / f"{wheel.name}.metadata").write_bytes(metadata)
    python = BytesParser().parsebytes(metadata).get("Requires-Python")
    attributes = {"data-core-metadata": f"sha256={hashlib.sha256(metadata).hexdigest()}"}
    if python:
        attributes["data-requires-python"] = python
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return _link(f"{quote(wheel.name)}#sha256={digest}", wheel.name, attributes)


def _link(target: str, text: str, attributes: dict[str, str] | None = None) -> str:
    more = "".join(f' {name}="{html.escape(value)}"' for name, value in (attributes or {}).items())
    return f'<a href="{html.escape(target)}"{more}>{html.escape(text)}</a><br>'


def _page(path: Path, title: str, links: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PAGE.format(title=html.escape(title), links="\n".join(links)))


if __name__ == "__main__":
    sys.exit(main())
