"""The command."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzz import bundles, checkpoints, data, models, operators, shared
from fuzz.isolation import isolated

KINDS: dict[str, Callable[[int, Path, Path], None]] = {
    "operators": operators.case,
    "models": models.case,
    "checkpoints": checkpoints.case,
    "darknet": checkpoints.darknet,
    "arrays": data.arrays,
    "golden": data.golden,
    "bundles": bundles.case,
}
"""Kind -> what runs a case: it gets the seed, an empty folder, and that of `shared`."""


def main() -> int:
    """Run the cases and print what they found; 1 if that is anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="of each kind")
    parser.add_argument("--operators", type=int, help="cases of this kind, which are fast, instead of --cases")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next has the next")
    parser.add_argument("--kind", choices=KINDS, action="append")
    arguments = parser.parse_args()
    found: Counter[str] = Counter()
    with TemporaryDirectory() as folder:
        problem = isolated(lambda _: shared.make(Path(folder)))
        if problem is not None:
            raise SystemExit(f"the files of the cases cannot be made: {problem}")
        shared.import_modules(Path(folder))
        for kind in arguments.kind or KINDS:
            begin = time.monotonic()
            cases = arguments.operators if kind == "operators" and arguments.operators else arguments.cases
            for seed in range(arguments.seed, arguments.seed + cases):
                problem = isolated(lambda own, kind=kind, seed=seed: KINDS[kind](seed, own, Path(folder)))  # type: ignore[misc]
                if problem is not None:
                    found[kind] += 1
                    print(f"{kind} {seed}: {problem}", flush=True)
            print(f"{kind}: {cases} cases, {found[kind]} found, {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
