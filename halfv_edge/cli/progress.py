"""Shows how far a measurement is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from halfv_edge.cli.console import Console
from halfv_edge.measure.progress import Progress, Watch

SHARE_ONLY = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


@contextmanager
def shown(console: Console, unit: str, bar_format: str | None = None) -> Iterator[Watch]:
    """What a measurement tells of its progress becomes a bar on stderr, where that is a terminal."""
    with tqdm(unit=f" {unit}", disable=None, leave=False, bar_format=bar_format) as bar:

        def show(progress: Progress) -> None:
            if not progress.total:
                console.status(progress.doing)
                return
            console.clear_status()
            bar.total = progress.total
            bar.set_description(progress.doing, refresh=False)
            bar.update(progress.done - bar.n)

        yield show
