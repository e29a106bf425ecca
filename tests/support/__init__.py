"""Helpers shared by test files, importable by `pythonpath` in pyproject.toml; no test file imports another."""
