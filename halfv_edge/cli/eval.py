"""`halfv eval`: how right, side by side in one run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfv_edge import files
from halfv_edge.cli import flags
from halfv_edge.cli.console import Console
from halfv_edge.errors import HalfVError
from halfv_edge.measure import policies
from halfv_edge.measure.eval.metrics import METRICS

if TYPE_CHECKING:
    from halfv_edge.engine.model import Model
    from halfv_edge.measure.eval.asking import Asker
    from halfv_edge.measure.eval.questions import Question
    from halfv_edge.measure.eval.run import Turns

ABOUT = """Asks a model the questions of JSONL files, unpruned and under other policies in turn, and says what is
retained. A line is {"image": ..., "question": ..., "answers": [...]}, with "task" and "metric" if there are several."""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Put `eval` among the commands."""
    command = commands.add_parser(
        "eval", help="measure what pruning costs in quality", description=ABOUT,
        epilog=f"Policies: {policies.describe()}.",
    )  # fmt: skip
    command.add_argument("questions", metavar="FILE.jsonl", nargs="+", type=Path)
    what = command.add_argument_group("evaluation")
    what.add_argument("--policy", metavar="NAME,NAME", default="profile", help="beside the unpruned model (profile)")
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
    flags.add_flags(command)
    command.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    console = Console()
    _check(args)
    from halfv_edge.measure.eval import questions  # here, so that other commands start fast

    limit = None if args.follow_up else args.limit
    asked = questions.gather(args.questions, args.metric, args.suffix, limit)
    with flags.load(args, console) as model:
        report = _run(args, console, model, asked)
    if args.plot:
        from halfv_edge.measure.eval import plot

        image = plot.as_png(report)
        files.write(args.plot, image)
        console.say(f"halfv: wrote {args.plot}.")
    from halfv_edge.measure.eval.report import as_table

    print(json.dumps(report, indent=2) if args.json else as_table(report))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.exact or args.prepare:
        flag, name = ("--prepare", "prepared") if args.prepare else ("--exact", "profile")
        raise HalfVError(f"{flag} is not a flag of eval: give --policy {name}, or --follow-up for conversations.")
    if args.plot and args.plot.suffix.lower() != ".png":
        raise HalfVError(f"--plot {args.plot} is not valid: its name must end in .png.")
    if args.plot and args.follow_up:
        raise HalfVError(f"--plot {args.plot} draws policies: leave it out with --follow-up.")


def _run(args: argparse.Namespace, console: Console, model: Model, asked: list[Question]) -> dict[str, Any]:
    from halfv_edge.measure.bench import machine
    from halfv_edge.measure.eval import frontier, questions, report, run
    from halfv_edge.measure.eval.asking import Asker

    dialogues = questions.some(questions.dialogues(asked), args.limit) if args.follow_up else []
    if args.follow_up and not dialogues:
        raise HalfVError(f"{args.questions[0]} has no picture with two questions, as --follow-up needs.")
    place = args.work or Path(f"eval-{model.path.stem}{'-follow-up' * args.follow_up}.jsonl")
    asker = Asker(model, args.max_tokens, args.kl_tokens, args.ctx)
    work = run.open_work(place, asker, args.follow_up)
    if work.results:
        console.say(f"halfv: {place} has {len(work.results)} results of an earlier run: going on from there.")
    try:
        given = _given(model, asker, asked[0])
        if args.follow_up:
            ways = _ways(given)
            found = _with_bar(len(dialogues) * len(ways), run.Conversations, asker, dialogues, ways, work)
            rows = report.follow_up(dialogues, found)
            asked = [question for dialogue in dialogues for question in dialogue]
        else:
            listed = _policies(args.policy, given)
            for policy in listed:
                asker.encoder(policy)  # one that cannot help is refused before anything slow
            found = _with_bar(len(asked) * len(listed), run.Evaluation, asker, asked, listed, work)
            rows = report.summary(asked, found)
            for row in rows:
                if row["n_whole"]:
                    console.say(f"halfv: {row['policy']}: {row['n_whole']} of {len(asked)} pictures were not pruned.")
    except KeyboardInterrupt:
        console.say(f"halfv: what is done is kept in {place}: the same command goes on from there.")
        raise
    finally:
        asker.close()
        work.close()
    return {
        "model": model.path.name,
        "encoder": model.encoder.path.name,
        "profile": model.profile.to_json() if model.profile else None,
        "n_questions": len(asked),
        "n_pictures": len({question.image for question in asked}),
        "follow_up": args.follow_up,
        "max_tokens": args.max_tokens,
        "kl_tokens": args.kl_tokens,
        "n_threads": model.runtime.n_threads,
        "commit": machine.commit(),
        "machine": machine.describe(),
        "rows": rows,
        "equal": [] if args.follow_up else frontier.at_the_profiles(rows),
    }


def _given(model: Model, asker: Asker, first: Question) -> policies.PolicyModel:
    """FLOPs are matched for the first question."""
    from halfv_edge.engine import images
    from halfv_edge.engine.context import n_cells

    unpruned = policies.parse_one(policies.UNPRUNED, policies.PolicyModel(model.n_layer, model.profile))
    head, tail, _ = asker.items(unpruned, images.load(first.image), first.question)
    n_before = next(at for at, item in enumerate(head) if not isinstance(item, int))
    n_visual = n_cells([item for item in head if not isinstance(item, int)])
    return policies.PolicyModel(
        model.n_layer, model.profile, lambda own, n: asker.picture_flops(own, n, len(tail), n_before), n_visual
    )


def _policies(text: str, given: policies.PolicyModel) -> list[policies.Policy]:
    """The unpruned model first."""
    listed = policies.parse(text, given)
    return [policies.parse_one(policies.UNPRUNED, given), *(p for p in listed if p.name != policies.UNPRUNED)]


def _ways(given: policies.PolicyModel) -> list[Turns]:
    from halfv_edge.measure.eval.run import Turns

    own = policies.parse_one("profile", given)
    early = dataclasses.replace(own, prepared=True)
    return [
        Turns("unpruned", policies.parse_one(policies.UNPRUNED, given), False),
        Turns("exact", own, False),
        Turns("exact, topped up", own, True),
        Turns("prepared", early, False),
        Turns("prepared, topped up", early, True),
    ]


def _with_bar(count: int, kind: type, asker: Asker, *what: Any) -> Any:
    from tqdm import tqdm

    with tqdm(total=count, desc="asking", unit=" answers", leave=False, disable=None) as bar:
        return kind(asker, *what, tick=bar.update).run()
