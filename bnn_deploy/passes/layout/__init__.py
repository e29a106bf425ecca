"""Passes that choose layouts and 8-bit edges of a binary graph."""
