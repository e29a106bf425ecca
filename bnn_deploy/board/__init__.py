"""Models on boards: bundles, the requirements on a board, and the deployment of a bundle."""
