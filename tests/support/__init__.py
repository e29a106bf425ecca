"""What several test files share. `pythonpath` of pyproject.toml makes it importable; no test file imports another."""
