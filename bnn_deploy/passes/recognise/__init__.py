"""Passes that find signs, levels and binary weights in whatever form they are written."""
