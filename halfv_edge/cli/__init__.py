"""The `halfv` command, also `python -m halfv_edge`."""
