"""`halfv tokens`: draws which visual tokens of a picture a question keeps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from halfv_edge.cli import answer_stats, flags
from halfv_edge.cli.console import Console
from halfv_edge.cli.errors import CODES
from halfv_edge.draw import png as token_png


def add_command(commands: flags.Commands) -> None:
    """Put `tokens` among the commands."""
    text = "draw which visual tokens of pictures a question keeps"
    command = commands.add_parser("tokens", help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=CODES)
    command.add_argument("images", metavar="IMAGE", nargs="+")
    command.add_argument("-p", "--prompt", metavar="TEXT", required=True, help="the question")
    command.add_argument(
        "-o",
        "--output",
        metavar="OUT.png",
        type=Path,
        required=True,
        help="of several pictures OUT-1.png, OUT-2.png, ...",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object with the kept tokens")
    flags.add_flags(command)
    command.set_defaults(run=_tokens)


def _tokens(args: argparse.Namespace) -> int:
    console = Console()
    pictures = flags.read_images(args.images)
    token_png.check(args.output, pictures)
    with flags.load(args, console) as model:
        chat = model.chat(mode="prepare" if args.prepare else "exact")
        if args.prepare:
            for picture in pictures:
                chat.add_image(picture)
        chat.answer(args.prompt, () if args.prepare else pictures, max_tokens=1)
        maps = chat.token_maps
        paths = token_png.write(maps, pictures, args.output)
        for path, token_map in zip(paths, maps, strict=True):
            console.say(f"halfv: wrote {path}: {answer_stats.funnel(token_map)}.")
        if why := answer_stats.why_whole(model.runtime, maps):
            console.say(f"halfv: nothing was pruned: {why}.")
        if args.json:
            drawn = [
                answer_stats.picture_json(picture, token_map)
                | {
                    "file": str(path),
                    "grid": [[t.columns, t.rows] for t in token_map.tiles],
                    "entered": [t.entered for t in token_map.tiles],
                    "given": [t.given for t in token_map.tiles],
                    "kept": [t.kept for t in token_map.tiles],
                    "deep": [t.deep for t in token_map.tiles],
                }
                for picture, token_map, path in zip(pictures, maps, paths, strict=True)
            ]
            print(json.dumps({"model": answer_stats.model_json(chat), "images": drawn}, indent=2))
    return 0
