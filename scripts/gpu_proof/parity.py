"""tests/gpu on the device, and what its tests recorded of it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from gpu_proof.place import Place, ended
from gpu_proof.recorder import RESULTS

MOST_WORKERS = 8


def run(place: Place, folder: Path, seconds: float, name: str, select: str = "", **env: str) -> dict[str, Any]:
    results = folder / f"{name}.jsonl"
    command = ["-m", "pytest", "tests/gpu", "-q", "-p", "gpu_proof.recorder", "-p", "no:cacheprovider"]
    command += ["-k", select] if select else []
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "--dist", "worksteal"]
    child = place.start(*command, env=place.env(**{RESULTS: str(results)}, **env))
    ended(child, seconds)
    tests = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return {"complete": child.returncode in (0, 1), "groups": groups(tests), "tests": tests}


def groups(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table: tests of the same function and kind, all architectures together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for test in tests:
        found.setdefault(_kind(test["test"]), []).append(test)
    rows = []
    for kind, members in found.items():
        count = {word: sum(test["outcome"] == word for test in members) for word in ("passed", "failed", "skipped")}
        told = [test for test in members if "kept" in test]
        same = [test["max_nmse"] for test in told if not test["kept_otherwise"]]
        rows.append(
            {"kind": kind, **count}
            | {key: sum(test[key] for test in told) for key in ("kept", "kept_otherwise")}
            | {"max_nmse_same_tokens": max(same, default=None)}
            | {key: max((test[key] for test in told), default=None) for key in ("max_kl", "max_difference")}
        )
    return rows


def _kind(node: str) -> str:
    """`tests/gpu/test_memory.py::test_same_as_cpu[llama-states-...]`: memory, states."""
    path, _, rest = node.partition("::")
    name, _, values = rest.partition("[")
    subject = re.sub(r".*test_|\.py$", "", path)
    words = values.rstrip("]").split("-")
    detail = {"memory": words[1:2], "pruned": words[1:2], "identity": [name.removeprefix("test_")]}.get(
        subject, words[1:]
    )
    return ", ".join([subject, *(word.replace("_", " ") for word in detail)])


def as_table(found: dict[str, Any]) -> list[str]:
    titles = ("what", "passed", "failed", "skipped", "tokens kept otherwise", "NMSE, same tokens", "KL, at most",
              "logit difference")  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for row in found["groups"]:
        number = lambda key, row=row: "" if row[key] is None else f"{row[key]:.1e}"  # noqa: E731
        kept = f"{row['kept_otherwise']} of {row['kept']}" if row["kept"] else ""
        lines.append(
            f"| {row['kind']} | {row['passed']} | {row['failed']} | {row['skipped']} | {kept} "
            f"| {number('max_nmse_same_tokens')} | {number('max_kl')} | {number('max_difference')} |"
        )
    bad = [test for test in found["tests"] if test["outcome"] == "failed"]
    lines += ["", *(f"- failed: `{test['test']}`: {test['why'].strip().splitlines()[-1][:200]}" for test in bad[:20])]
    lines += [
        f"- `{test['test']}`: {test['kept_otherwise']} of {test['kept']} tokens were others"
        for test in found["tests"]
        if test.get("kept_otherwise")
    ]
    lines += [
        f"- `{test['test']}`: error of similarities {test['similarity']:.1e} (host {test['similarity_host']:.1e}), "
        f"of dots {test['dot']:.1e}; of {test['chosen']} chosen tokens {test['others']} were not the exact ones "
        f"(host: {test['others_host']})"
        for test in found["tests"]
        if "similarity" in test
    ]
    asked = [test for test in found["tests"] if "decided" in test]
    if asked:
        by = {name: sum(test[name] for test in asked) for name in ("others_by_states", "others_by_choice")}
        lines.append(
            f"- saved here and settled there: of {sum(test['decided'] for test in asked)} tokens kept, "
            f"{by['others_by_states']} are others because the GPU's states differ, {by['others_by_choice']} because it "
            "chooses otherwise among the same states"
        )
    lines += [] if found["complete"] else ["", "The run was stopped before its end."]
    return lines
