"""The rewrites that turn a float graph into a binary one, one per file; `graph` is what they share."""
