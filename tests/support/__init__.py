"""Helpers of the tests: `from tests.support.NAME import ...`. pyproject.toml puts the repository on the path."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
