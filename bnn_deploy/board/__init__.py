"""Models on boards: bundles, what a board must have, and how a bundle gets there and runs."""
