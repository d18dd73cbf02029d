"""llama.cpp's default parameters, but for some fields: to put in place of what our classes ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Params = TypeVar("Params")


def changed(make: Callable[[], Params], **fields: Any) -> Callable[[], Params]:
    def params() -> Params:
        made = make()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    return params
