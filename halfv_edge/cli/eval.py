"""`halfv eval`: how right, side by side in one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from halfv_edge import files
from halfv_edge.cli import flags, progress
from halfv_edge.cli.console import Console
from halfv_edge.errors import HalfVError
from halfv_edge.measure import policies
from halfv_edge.measure.eval.metrics import METRICS

ABOUT = """Asks a model the questions of JSONL files, unpruned and under other policies in turn, and says what is
retained. A line is {"image": ..., "question": ..., "answers": [...]}, with "task" and "metric" if there are several."""


def add_command(commands: flags.Commands) -> None:
    """Put `eval` among the commands."""
    command = commands.add_parser(
        "eval", help="measure what pruning costs in quality", description=ABOUT,
        epilog=f"Policies: {policies.describe()}.",
    )  # fmt: skip
    command.add_argument("questions", metavar="FILE.jsonl", nargs="+", type=Path)
    what = command.add_argument_group("evaluation")
    what.add_argument(
        "--policy", metavar="NAME,NAME", type=flags.words, default=("profile",),
        help="beside the unpruned model (profile)",
    )  # fmt: skip
    what.add_argument(
        "--against", metavar="NAME",
        help="pair all policies with this one (each that leads with its runner-up)",
    )  # fmt: skip
    what.add_argument("--metric", choices=METRICS, help="of all questions, in place of theirs")
    what.add_argument("--suffix", metavar="TEXT", default="", help="put behind every question")
    what.add_argument(
        "--limit", metavar="N", type=flags.positive, help="questions, or conversations, spread over the files"
    )
    what.add_argument("--max-tokens", metavar="N", type=flags.positive, default=32, help="of an answer (32)")
    what.add_argument(
        "--kl-tokens", metavar="N", type=flags.positive, default=4, help="of an answer whose KL is measured (4)"
    )
    what.add_argument(
        "--follow-up",
        action="store_true",
        help="questions on one picture as a conversation: exact, prepared, topped up",
    )
    out = command.add_argument_group("output")
    out.add_argument(
        "--work", metavar="FILE.jsonl", type=Path, help="where results are kept, to go on from (eval-MODEL.jsonl here)"
    )
    out.add_argument("--json", action="store_true", help="print everything that was found")
    out.add_argument("--plot", metavar="OUT.png", type=Path, help="draw the frontier as well")
    flags.add_model(command)
    pruning = flags.add_pruning(command)
    flags.add_encoder_pruning(pruning)
    flags.add_running(command)
    command.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    from halfv_edge import measure  # here, so that other commands start fast

    console = Console()
    _check(args)
    read = measure.read_dialogues if args.follow_up else measure.read_questions
    asked = read(args.questions, metric=args.metric, suffix=args.suffix, limit=args.limit)
    options = measure.EvalOptions(
        policies=args.policy, against=args.against, follow_up=args.follow_up, max_tokens=args.max_tokens,
        kl_tokens=args.kl_tokens,
    )  # fmt: skip
    args.repack = not policies.takes_parts(args.policy)
    with flags.load(args, console) as model, progress.shown(console, "answer") as show:
        work = args.work or Path(f"eval-{model.path.stem}{'-follow-up' * args.follow_up}.jsonl")
        try:
            report = measure.run_eval(
                model, asked, options=options, work=work, progress=show, say=lambda text: console.say(f"halfv: {text}")
            )
        except KeyboardInterrupt:
            console.say(f"halfv: what is done is kept in {work}: the same command goes on from there.")
            raise
    if args.plot:
        files.write(args.plot, measure.eval_plot(report))
        console.say(f"halfv: wrote {args.plot}.")
    print(json.dumps(report.to_json(), indent=2) if args.json else measure.eval_table(report))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.plot and args.plot.suffix.lower() != ".png":
        raise HalfVError(f"--plot {args.plot} is not valid: its name must end in .png.")
    if args.plot and args.follow_up:
        raise HalfVError(f"--plot {args.plot} draws policies: leave it out with --follow-up.")
