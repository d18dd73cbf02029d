"""A shape at some sizes of picture, stock against ours, as `halfv bench` measures it; saved after each size."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def measure(question: dict[str, Any]) -> None:
    from halfv_cpp import library

    from halfv_edge.measure import policies
    from halfv_edge.measure.bench import subject
    from halfv_edge.measure.bench.measurements import Bench, Contender
    from halfv_edge.measure.bench.options import BenchOptions

    name, out = question["shape"], Path(question["out"])
    model = subject.RandomModel(shape=name, tokens=tuple(question["tokens"]), folder=Path(question["models"]))
    measured = subject.random_model(model, (), question["draw"], None)
    how = {key: question[key] for key in ("n_ubatch", "n_threads", "n_gpu_layers", "repeats")}
    options = BenchOptions(stock_lib=Path(question["stock"]), **how)
    rows: list[dict[str, Any]] = []
    say = lambda step: print(f"  {name}: {step}", file=sys.stderr, flush=True)  # noqa: E731
    with Bench(measured, options, library.lib_dir(), say) as bench:
        own = policies.parse_one("profile", policies.PolicyModel(measured.about.n_layer, measured.profile))
        bench.enter(
            [
                Contender(policies.STOCK, bench.stock),
                Contender(policies.UNPRUNED, bench.halfv),
                Contender("profile", bench.halfv, own),
            ]
        )
        for at in range(bench.n_pictures):
            found = bench.prompt(at)
            used: dict[str, int | None] = {}
            if at == bench.n_pictures - 1:
                of_process = device_mib()
                used = {"stock": of_process.get(bench.stock.process.pid)}
                used |= {"unpruned": of_process.get(bench.halfv.process.pid)}
                found = bench.with_memory(found)
            rows += [{"shape": name, "process_mib": used.get(row.run)} | dataclasses.asdict(row) for row in found]
            partial = out.with_suffix(".partial")
            partial.write_text(json.dumps(rows))
            partial.replace(out)


def device_mib() -> dict[int, int]:
    """Of each process, as nvidia-smi tells; {} where it does not."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return {}
    pairs = (line.split(", ") for line in said.stdout.splitlines() if line.count(", ") == 1)
    return {int(pid): int(mib) for pid, mib in pairs if pid.isdigit() and mib.isdigit()}


def as_table(rows: list[dict[str, Any]]) -> list[str]:
    titles = ("model", "picture", "visual tokens", "run", "kept", "TTFT ms", "sooner", "ceiling", "encoder ms",
              "prefill ms", "prefill faster", "selection ms", "decode tok/s", "KV MiB",
              "context on device MiB")  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for row in rows:
        is_base = row["run"] == "stock"
        cells = (
            row["shape"],
            row["picture"],
            str(row["n_visual"]),
            row["run"],
            f"{row['n_kept']} / {row['n_deep']}",
            _ms(row["ttft_s"]),
            "" if is_base else _times(row["ttft_ratio"]),
            "" if is_base else f"{row['ttft_ceiling']:.2f}",
            _ms(row["encode_s"]),
            _ms(row["prefill_s"]),
            "" if is_base else _times(row["prefill_ratio"]),
            _ms(row["select_s"]) if row["select_s"] else "",
            f"{row['decode_tokens_per_s']['median']:.0f}",
            _mib(row["kv_bytes"]),
            _mib(row.get("device_bytes")),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ms(value: dict[str, float]) -> str:
    median, low, high = (1e3 * value[key] for key in ("median", "min", "max"))
    return f"{median:.1f} ({low:.1f}-{high:.1f})"


def _times(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})"


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value / 2**20:.0f}"


if __name__ == "__main__":
    measure(json.loads(sys.argv[1]))
