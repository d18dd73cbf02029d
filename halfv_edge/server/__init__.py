"""llama-server and other programs on our libraries: `halfv serve`, `halfv run`."""
