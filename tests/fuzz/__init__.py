"""Fuzzing: seeded cases of odd and bad input, each in a process of its own.

    python -m tests.fuzz --cases 100000 --seed 1 --kind operators

A case is known by its kind and seed alone. It must not crash, hang (20 s of computing), take more than 8 GiB, fail with
anything but one clear line, or leave a file behind. `test_fuzz` runs a few of each kind in the test suite.

The cases are not hypothesis's: it runs them in its own process, which a crash ends and a hang stops, and it keeps a
database beside the seeds. They are small by design, so that there is little to shrink.
"""

import sys
from pathlib import Path

_SOURCE = str(Path(__file__).parents[2])
if sys.path[0] == _SOURCE:  # by python -m: behind the installed package, which has the compiled library
    sys.path.append(sys.path.pop(0))
if str(Path(__file__).parents[1]) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for `support` and `fuzz`, as in pytest
