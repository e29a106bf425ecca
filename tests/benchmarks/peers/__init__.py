"""The engines that compare.py measures, and the process that runs them."""
