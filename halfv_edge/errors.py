"""The one exception for mistakes that were foreseen."""


class HalfvError(Exception):
    """A mistake that one sentence explains: it quotes the bad value and gives a hint."""

    exit_code = 1  # of the command
