"""Signs as people write them in PyTorch, from each source: does their layer become binary, or what is said instead?

    python tests/idiom_table.py

Each idiom of support/idioms.py is a branch of a network, which is converted from each source and held against it, also
with a flipped weight bit. It exits with 1 if a cell is not what tests/source/test_idioms.py expects.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bnn_deploy.errors import BnnDeployError
from support.idioms import IDIOMS, SOURCES, NotMadeError, groups, outcome


def column(source: str) -> dict[str, str]:
    """What becomes of each idiom from one source: "binary", "refused" or "no source"; else what is wrong."""
    print(f"{source} ...", file=sys.stderr)
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for names in [*groups(source), *([name] for name, idiom in IDIOMS.items() if source in idiom.refused)]:
            said = IDIOMS[names[0]].refused.get(source)
            try:
                found = [text or "binary" for text in outcome(source, names, Path(folder))]
            except (BnnDeployError, NotMadeError) as error:
                named = said is not None and re.search(said, str(error))
                kind = "no source" if isinstance(error, NotMadeError) else "refused"
                found = [kind if named else f"{type(error).__name__}: {error}"] * len(names)
            cells |= dict(zip(names, found, strict=True))
    return cells


def main() -> None:
    columns = {source: column(source) for source in SOURCES}
    table = Table("idiom", *SOURCES)
    for name in IDIOMS:
        table.add_row(name, *(cells[name] for cells in columns.values()))
    Console(width=150).print(table)
    every = [cell for cells in columns.values() for cell in cells.values()]
    counts = {kind: every.count(kind) for kind in ("binary", "refused", "no source")}
    print(
        f"{len(IDIOMS)} idioms x {len(SOURCES)} sources: {counts['binary']} binary, {counts['refused']} refused by "
        f"name, {counts['no source']} that PyTorch cannot make"
    )
    wrong = len(every) - sum(counts.values())
    print(f"FAILED: {wrong} cells" if wrong else "PASSED")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
