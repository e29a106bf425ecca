"""The commands in the documentation, and the tutorial."""
