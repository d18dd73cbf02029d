"""The exceptions for what was foreseen."""


class HalfvError(Exception):
    """A mistake that one sentence explains: it quotes the bad value and gives a hint."""

    exit_code = 1  # of the command


class RunError(HalfvError):
    """Nothing was wrong with what was asked for, but llama.cpp or the device failed at it."""
