"""Passes that write what exporters write differently in one way."""
