"""The whole evaluation: which policies are asked which questions, and what that comes to."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from halfv_edge.engine import images
from halfv_edge.engine.context import n_cells
from halfv_edge.engine.model import Model
from halfv_edge.errors import HalfVError
from halfv_edge.measure import policies
from halfv_edge.measure.bench import machine
from halfv_edge.measure.eval import frontier, pairs, summary
from halfv_edge.measure.eval.asking import Asker
from halfv_edge.measure.eval.evaluation import Conversations, Evaluation, WayToTalk, open_work
from halfv_edge.measure.eval.options import EvalOptions
from halfv_edge.measure.eval.questions import Question, dialogues
from halfv_edge.measure.eval.results import ConversationRow, EvalReport, PairRow, PolicyRow
from halfv_edge.measure.progress import Progress, Say, Watch, ignore
from halfv_edge.measure.work_file import WorkFile
from halfv_edge.profile import frontier as carried
from halfv_edge.profile.model_file import ModelFile

DEFAULTS = EvalOptions()


def run_eval(
    model: Model,
    questions: Sequence[Question],
    *,
    options: EvalOptions = DEFAULTS,
    work: Path | None = None,
    progress: Watch = ignore,
    say: Say = ignore,
) -> EvalReport:
    """Ask a model questions, unpruned and under other policies in turn, and score what it says.

    Args:
        model: With the profile that the policies refer to.
        questions: As `read_questions` gives them; for conversations those of `read_dialogues`.
        options: Which policies, and how they are asked.
        work: A file that keeps each result, so that a run that was stopped goes on; None keeps nothing.
        progress: Hears of each answer, or conversation.
        say: Hears what a person should know.

    Returns:
        A row per policy, or per way to hold a conversation, with intervals.

    Raises:
        HalfVError: A policy is not valid or has no effect, or `work` belongs to another model.

    Example:
        with Model.load("model.gguf") as model:
            report = run_eval(model, read_questions([Path("questions.jsonl")]))
        print(eval_table(report))
    """
    asker = Asker(model, options.max_tokens, options.kl_tokens)
    kept = open_work(work, asker, options.follow_up)
    if kept.results:
        say(f"{work} has {len(kept.results)} results of an earlier run: going on from there.")
    rows: tuple[PolicyRow, ...] | tuple[ConversationRow, ...]
    equal = []
    paired: list[PairRow] = []
    try:
        if options.follow_up:
            rows = _talk(asker, questions, kept, progress)
        else:
            rows, paired = _ask(asker, questions, options, kept, progress)
            equal = frontier.at_the_profiles(rows)
            for row in rows:
                if row.n_whole:
                    say(f"{row.policy}: {row.n_whole} of {len(questions)} pictures were not pruned.")
    finally:
        asker.close()
        kept.close()
    return EvalReport(
        model=model.path.name,
        encoder=model.encoder.path.name,
        profile=model.profile.to_json() if model.profile else None,
        n_questions=len(questions),
        n_pictures=len({question.image for question in questions}),
        follow_up=options.follow_up,
        max_tokens=options.max_tokens,
        kl_tokens=options.kl_tokens,
        n_threads=model.runtime.n_threads,
        commit=machine.commit(),
        machine=machine.describe(),
        rows=rows,
        equal=tuple(equal),
        pairs=tuple(paired),
    )


def _ask(
    asker: Asker, questions: Sequence[Question], options: EvalOptions, work: WorkFile, progress: Watch
) -> tuple[tuple[PolicyRow, ...], list[PairRow]]:
    if not questions:
        raise HalfVError("There are no questions to ask: give some.")
    base = _model_of(asker)
    unpruned = policies.parse_one(policies.UNPRUNED, base)
    listed = policies.parse(",".join(options.policies), _with_flops(asker, base, questions[0]))
    listed = [unpruned, *(policy for policy in listed if policy.name != policies.UNPRUNED)]
    pairs.check_against(options.against, policies.names(listed))
    for policy in listed:
        asker.encoder(policy)  # one that cannot help is refused before anything slow
    tick = _counter(len(questions) * len(listed), progress)
    found = Evaluation(asker, questions, listed, work, tick).run()
    rows = tuple(summary.of_policies(questions, found))
    return rows, pairs.of_pairs(questions, rows, found, options.against)


def _model_of(asker: Asker) -> policies.PolicyModel:
    model = asker.model
    return policies.PolicyModel(
        model.n_layer, model.profile, at_speed=lambda speed: carried.choose(ModelFile.read(model.path), speed)
    )


def _with_flops(asker: Asker, base: policies.PolicyModel, first: Question) -> policies.PolicyModel:
    """FLOPs are matched for the first question."""
    unpruned = policies.parse_one(policies.UNPRUNED, base)
    head, tail, _ = asker.items(unpruned, images.load(first.image), first.question)
    n_before = next(at for at, item in enumerate(head) if not isinstance(item, int))
    n_visual = n_cells([item for item in head if not isinstance(item, int)])
    return dataclasses.replace(
        base, flops=lambda own, n: asker.picture_flops(own, n, len(tail), n_before), n_visual=n_visual
    )


def _talk(asker: Asker, questions: Sequence[Question], work: WorkFile, progress: Watch) -> tuple[ConversationRow, ...]:
    talks = dialogues(questions)
    if not talks:
        raise HalfVError("No picture has two questions, as a conversation needs.")
    base = _model_of(asker)
    own = policies.parse_one("profile", base)
    early = dataclasses.replace(own, prepared=True)
    ways = [
        WayToTalk("unpruned", policies.parse_one(policies.UNPRUNED, base), False),
        WayToTalk("exact", own, False),
        WayToTalk("exact, topped up", own, True),
        WayToTalk("prepared", early, False),
        WayToTalk("prepared, topped up", early, True),
    ]
    found = Conversations(asker, talks, ways, work, _counter(len(talks) * len(ways), progress)).run()
    return tuple(summary.of_conversations(talks, found))


def _counter(total: int, progress: Watch) -> Callable[[], None]:
    numbers = itertools.count(1)
    return lambda: progress(Progress(next(numbers), total, "asking"))
