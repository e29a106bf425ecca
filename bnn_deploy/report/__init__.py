"""The report of a conversion: what became of each layer, from what, and what a user could change."""
