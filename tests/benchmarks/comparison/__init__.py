"""The parts of compare.py.

`workloads` makes the layers and networks, `workers` the processes, `measuring` fills `results`; `tables`, `page` and
`picture` show them.
"""
