"""The exceptions for what was foreseen. They carry data; how a parameter is called is decided where they are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_NOT_GIVEN: Final = object()


class HalfVError(Exception):
    """What was asked for cannot be had, and one sentence says why: it quotes the bad value and gives a hint.

    Parameters of the API are named as data, so that every surface can call them what its users call them.

    Args:
        text: The whole sentence; or, with a parameter or a hint, what is wrong ("is not valid" for a parameter).
        parameter: The parameter at fault, by its name in Python.
        value: What was given for it.
        rule: What it must be.
        hint: What to do instead.
        settings: Parameters that the text or the hint mention as `{name}`, with the value to give, or None for the
            name alone.

    Example:
        >>> str(HalfVError(parameter="n_ctx", value=0, rule="at least 1"))
        'n_ctx = 0 is not valid: it must be at least 1.'
        >>> error = HalfVError("The context is full", hint="load with {n_ctx}", settings={"n_ctx": 4096})
        >>> str(error)
        'The context is full: load with n_ctx=4096.'
        >>> error.sentence({"n_ctx": "--ctx"})
        'The context is full: load with --ctx 4096.'
    """

    def __init__(
        self,
        text: str = "",
        *,
        parameter: str | None = None,
        value: object = _NOT_GIVEN,
        rule: str | None = None,
        hint: str | None = None,
        settings: Mapping[str, object] | None = None,
    ):
        super().__init__(text)
        self.text = text
        self.parameter = parameter
        self.has_value = value is not _NOT_GIVEN
        self.value = value if self.has_value else None
        self.rule = rule
        self.hint = hint
        self.settings = dict(settings or {})

    def sentence(self, flags: Mapping[str, str] | None = None) -> str:
        """The error in words.

        Args:
            flags: What a command line calls the parameters; those it leaves out keep their names in Python.

        Returns:
            One sentence.
        """
        flags = flags or {}
        words = f"{self._subject(flags)} {self.text or 'is not valid'}" if self.parameter else self.text
        remedies = [f"it must be {self.rule}"] if self.rule else []
        remedies += [self.hint] if self.hint else []
        if remedies:
            words = f"{words}: {'; '.join(remedies)}."
        elif self.parameter:
            words += "."
        for name, value in self.settings.items():
            words = words.replace(f"{{{name}}}", _setting(name, value, flags))
        return words

    def _subject(self, flags: Mapping[str, str]) -> str:
        assert self.parameter is not None
        if not self.has_value:
            return flags.get(self.parameter, self.parameter)
        if self.parameter in flags:
            return f"{flags[self.parameter]} {_typed(self.value)}"
        return f"{self.parameter} = {self.value!r}"

    def __str__(self) -> str:
        return self.sentence()


class RunError(HalfVError):
    """Nothing was wrong with what was asked for, but llama.cpp or the device failed at it."""


def _setting(name: str, value: object, flags: Mapping[str, str]) -> str:
    if value is None:
        return flags.get(name, name)
    return f"{flags[name]} {_typed(value)}" if name in flags else f"{name}={value!r}"


def _typed(value: object) -> str:
    """As a person types it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def quote(value: Any) -> str:
    """A value from a file as it may stand in a message: one line, printable, not long."""
    text = json.dumps(value, default=str, separators=(",", ":"))
    return text if len(text) <= 80 else text[:77] + "..."
