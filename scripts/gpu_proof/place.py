"""Where things are: in the unpacked archive, or in a clone with two build folders."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CUDA = ("libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*")


class ProofError(Exception):
    """Why nothing can be proven, in one sentence."""


@dataclass(frozen=True)
class Place:
    lib: Path
    stock: Path
    log: Path  # what children say

    @staticmethod
    def find(build: Path | None, stock: Path | None, log: Path) -> Place:
        folders = (build / "bin" if build else ROOT / "lib"), (stock / "bin" if stock else ROOT / "stock")
        for folder in folders:
            if not (folder / "libllama.so").exists():
                raise ProofError(
                    f"{folder} holds no libllama.so: run this from the unpacked archive, or give --build and --stock."
                )
        return Place(folders[0].resolve(), folders[1].resolve(), log)

    def env(self, stock: bool = False, **more: str) -> dict[str, str]:
        packages = [ROOT / "python"] if (ROOT / "python").is_dir() else [ROOT, ROOT / "bindings"]
        paths = [*packages, ROOT / "scripts", ROOT, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        libraries = [*cuda_folders(), *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)]
        return (
            os.environ
            | {
                "PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)),
                "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in libraries if str(path)),
                "HALFV_LIB_DIR": str(self.stock if stock else self.lib),
                "HALFV_STOCK_DIR": str(self.stock),
                "PYTHONDONTWRITEBYTECODE": "1",
            }
            | more
        )

    def start(self, *command: str, **options: Any) -> subprocess.Popen:
        """A child in a group of its own, so that it goes with its children."""
        log = self.log.open("a")
        env = options.pop("env", None) or self.env()
        try:
            return subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=env, stderr=log, start_new_session=True, text=True,
                **({"stdout": log} | options),
            )  # fmt: skip
        finally:
            log.close()

    def ask(self, seconds: float, module: str, question: dict[str, Any], env: dict[str, str]) -> Any:
        """The JSON that a module prints."""
        child = self.start("-m", module, json.dumps(question), env=env, stdout=subprocess.PIPE)
        said = ended(child, seconds)
        if child.returncode:
            raise ProofError(f"{module} ended with code {child.returncode}: {self.last_words()}")
        return json.loads(said)

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-2:])


def ended(child: subprocess.Popen, seconds: float) -> str:
    """What it printed, once it has ended. It is killed when that takes longer, and then has code -9."""
    try:
        return child.communicate(timeout=max(seconds, 0.1))[0] or ""
    except subprocess.TimeoutExpired:
        kill(child)
        return ""


def kill(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def cuda_folders() -> list[Path]:
    """Of CUDA's libraries, from pip's packages or the toolkit."""
    sites = dict.fromkeys(Path(folder).resolve() for folder in sys.path if folder)
    roots: Sequence[Path] = [site / "nvidia" for site in sites] + [Path("/usr/local/cuda/lib64")]
    found = (path.parent for root in roots if root.is_dir() for name in CUDA for path in root.rglob(name))
    return list(dict.fromkeys(found))
