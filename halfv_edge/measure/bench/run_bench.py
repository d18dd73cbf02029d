"""The whole bench: which ways are set side by side, and what they come to."""

from __future__ import annotations

import os
from collections.abc import Sequence

from halfv_cpp import library
from halfv_cpp.machine import n_cores

from halfv_edge.errors import HalfVError
from halfv_edge.measure import policies
from halfv_edge.measure.bench import machine, subject
from halfv_edge.measure.bench.measurements import OFF, SWITCHED_OFF, Bench, Contender
from halfv_edge.measure.bench.options import BenchOptions
from halfv_edge.measure.bench.results import BenchReport, Row
from halfv_edge.measure.bench.subject import RandomModel
from halfv_edge.measure.progress import Progress, Say, Watch, ignore

DEFAULTS = BenchOptions()


def run_bench(
    model: str | os.PathLike[str] | RandomModel | None = None,
    images: Sequence[str | os.PathLike[str]] = (),
    *,
    mmproj: str | os.PathLike[str] | None = None,
    options: BenchOptions = DEFAULTS,
    progress: Watch = ignore,
    say: Say = ignore,
) -> BenchReport:
    """Measure speed and memory of a model, unpruned and pruned, in turn in one run.

    The libraries run in processes of their own, so that an unpatched llama.cpp can be measured beside this one.

    Args:
        model: As `Model.load` takes it, or a RandomModel.
        images: Files of pictures to measure with; one is generated when there are none.
        mmproj: The encoder's GGUF; looked for beside the model when not given.
        options: What is measured, and how.
        progress: Hears of each request.
        say: Hears what a person should know, such as that the machine is busy.

    Returns:
        Rows per picture and way of running it, and what they were measured on.

    Raises:
        HalfVError: What was asked for cannot be measured, or a run that was to be pruned was not.

    Example:
        report = run_bench("model.gguf", ["photo.jpg"], options=BenchOptions(keep=(0.5,), repeats=3))
        print(bench_table(report))
    """
    if isinstance(model, RandomModel):
        progress(Progress(0, 0, f"looking for {model.shape}, or writing it ..."))
        measured = subject.random_model(model, images, options.draw, options.profile)
    else:
        measured = subject.given_model(model, mmproj, images, options.draw, options.profile)
    if note := machine.busy():
        say(f"warning: {note}")
    of_model = policies.PolicyModel(measured.about.n_layer, measured.profile)
    listed = _listed(options, of_model)
    packed = not any(policy.profile and policy.profile.takes_parts for policy in listed)
    with Bench(measured, options, library.lib_dir(), progress, packed=packed) as bench:
        bench.enter(_contenders(options, bench, of_model, listed))
        libraries = bench.about()
        rows = _rows(bench, options)
    return BenchReport(
        measurement=options.measurement,
        subject=measured.name,
        arch=measured.about.architecture,
        weights=measured.weights,
        encoder=measured.mmproj is not None,
        profile=measured.profile.to_json() if measured.profile else None,
        commit=machine.commit(),
        machine=machine.describe() | {"devices": libraries["halfv"]["devices"]},
        libraries=libraries,
        repeats=options.repeats,
        n_decode=options.n_decode,
        n_batch=options.n_batch,
        n_ubatch=options.n_ubatch,
        n_threads=options.n_threads or n_cores(),
        n_gpu_layers=options.n_gpu_layers,
        kv_type=options.kv_type,
        mmproj_type=options.mmproj_type,
        packed=packed,
        rows=rows,
    )


def _rows(bench: Bench, options: BenchOptions) -> tuple[Row, ...]:
    places = range(bench.n_pictures)
    if options.measurement == "follow_up":
        return tuple(row for at in places for row in bench.follow_up(at))
    if options.measurement == "off":
        return tuple(row for at in places for row in bench.off(at))
    rows = [bench.prompt(at) for at in places]
    return tuple(row for of_picture in [*rows[:-1], bench.with_memory(rows[-1])] for row in of_picture)


def _listed(options: BenchOptions, of_model: policies.PolicyModel) -> list[policies.Policy]:
    """The profile, and what else is asked for."""
    if options.measurement != "prompt":
        return [policies.parse_one("profile", of_model)]
    wanted = ["profile", *(f"keep:{share:g}" for share in options.keep), *options.policies]
    listed = policies.parse(",".join(wanted), of_model)
    if any(policy.prepared for policy in listed):
        raise HalfVError("The policy prepared is measured as a conversation: measure follow-up questions for it.")
    for policy in listed:
        if policy.bits:
            raise HalfVError(f"The policy {policy.name} rewrites a cache of f16 for eval: it cannot be timed.")
        if policy.selector:  # in numpy, so that its time means nothing
            raise HalfVError(f"The policy {policy.name} is chosen by a selector of eval's: it cannot be timed.")
    return listed


def _contenders(
    options: BenchOptions, bench: Bench, of_model: policies.PolicyModel, listed: Sequence[policies.Policy]
) -> list[Contender]:
    """The first one is what the others are compared with."""
    stock = [Contender(policies.STOCK, bench.stock)] if bench.stock else []
    own = listed[0]
    if options.measurement == "off":
        return [*stock, Contender(OFF, bench.halfv), Contender(SWITCHED_OFF, bench.halfv, own, True)]
    unpruned = Contender(policies.UNPRUNED, bench.halfv)
    if options.measurement == "follow_up":
        base = stock or [unpruned]
        return [*base, *(Contender(name, bench.halfv, own) for name in ("exact", "prepared, topped up"))]
    base = stock or [unpruned]
    if bench.subject.mmproj:  # the encoder's gain apart from that of pruning
        as_stock = Contender(policies.STOCK, bench.halfv, policies.parse_one(policies.STOCK, of_model))
        base = [*(stock or [as_stock]), unpruned]
    names = [contender.name for contender in base]
    others = [policy for policy in listed if policy.name not in names]
    return [*base, *(Contender(policy.name, bench.halfv, policy) for policy in others)]
