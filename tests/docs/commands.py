"""The commands in README.md and docs/: they are run in the order of the pages, and their output is written back.

    python tests/docs/commands.py            run all, and hold what they print against the pages
    python tests/docs/commands.py --write    run all, and let the pages show what they print
    python tests/docs/commands.py --list     how many there are, and which are not run, with the reasons
    python tests/docs/commands.py --write --folder x docs/report.md    this page alone, in a folder that others ran in

A block fenced as `console` has commands, behind "$ ", each with what it prints; one fenced as `sh` has commands alone,
and one fenced as `python` is a program. All run in one folder, as if it were the source tree, page by page, in the
order of mkdocs.yml: a page may use what those before it made. A comment above a block says what else is to be known:

    <!-- not run: it needs a board -->              the reason why it is not run
    <!-- needs: npm -->                             the program without which it is not run
    <!-- show: A | B ... C | D ... -->              the parts of the output to show: the line that begins with A; those
                                                    from B to the one before C; those from D to the end. Such a block
                                                    has one command
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

sys.path.append(str(Path(__file__).parents[1]))  # as a script, this is no part of the tests
from support import python

ROOT = Path(__file__).parents[2]

CUT = "..."
"""The line that stands for a part of the output that is not shown."""

LINKED = ("constraints.txt", "examples", "tests")
"""What commands use of the source tree. Not the package: Python would take it instead of the installed one."""

SECONDS = 300
"""The time after which a command is given up."""

_BLOCK = re.compile(
    r"^(?P<notes>(?:<!-- (?:not run|needs|show): [^\n]* -->\n)*)"
    r"```(?P<language>console|sh|bash|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_NOTE = re.compile(r"<!-- (not run|needs|show): ([^\n]*) -->")


@dataclass
class Block:
    """A block of commands.

    Attributes:
        page: the file that it is in, relative to the source tree.
        language: console, sh, bash or python.
        text: what stands between the fences.
        not_run: why its commands are not run; None if they are.
        missing: the program without which they are not, if it is not here; else None.
        parts: which parts of the output are shown, as pairs of what lines begin with; all of it if there are none. The
            second of a pair is None for one line, and "" for all the rest.
        printed: what each command printed on stdout, once `run` ran it.
        notes: how many comments above it say this.
    """

    page: str
    language: str
    text: str
    not_run: str | None = None
    missing: str | None = None
    parts: list[tuple[str, str | None]] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)
    notes: int = 0

    @property
    def commands(self) -> list[str]:
        """The commands, a program of Python as one."""
        if self.language == "python":
            return [self.text]
        lines = self.text.replace("\\\n", "\\\0").splitlines()  # a command may go on in the next line
        if self.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            # An output that is cut may have such lines, too, as the demo's.
            lines = lines[:1] if self.parts else lines
        return [line.replace("\\\0", "\\\n") for line in lines if line.strip() and not line.startswith("#")]

    @property
    def rewritten(self) -> str:
        """The text with what the commands printed."""
        if self.language != "console" or not self.printed:
            return self.text
        shown = zip(self.commands, self.printed, strict=True)
        return "".join(f"$ {command}\n{cut(printed, self.parts)}" for command, printed in shown)


def pages(root: Path = ROOT) -> list[Path]:
    """README.md, and the pages of the documentation in its own order."""

    def files(entries: list[object]) -> Iterator[str]:
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from files(value) if isinstance(value, list) else [str(value)]

    # The site's theme has tags of Python in mkdocs.yml, which only mkdocs needs.
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    site = yaml.load((root / "mkdocs.yml").read_text(), Loader)
    return [root / "README.md", *(root / "docs" / name for name in files(site["nav"]) if name.endswith(".md"))]


def blocks(page: Path, root: Path = ROOT) -> list[Block]:
    """The blocks of commands in a page."""
    return [_block(match, str(page.relative_to(root))) for match in _BLOCK.finditer(page.read_text())]


def _block(match: re.Match[str], page: str) -> Block:
    notes = dict(_NOTE.findall(match["notes"]))
    parts = [part.partition(CUT) for part in notes.get("show", "").split("|") if part]
    needed = notes.get("needs")
    missing = needed is not None and shutil.which(needed) is None
    return Block(
        page,
        match["language"],
        match["text"],
        notes.get("not run", f"{needed} is not installed" if missing else None),
        needed if missing else None,
        [(first.strip(), last.strip() if dots else None) for first, dots, last in parts],
        notes=len(notes),
    )


def cut(printed: str, parts: list[tuple[str, str | None]]) -> str:
    """The parts of an output that are shown, with CUT for what is between them."""
    if not parts:
        return printed
    lines = printed.splitlines()
    result, at = [], 0
    for first, last in parts:
        start = next((i for i in range(at, len(lines)) if lines[i].lstrip().startswith(first)), None)
        if start is None:
            raise ValueError(f"no line begins with {first!r} in what was printed:\n{printed}")
        rest = range(start + 1, len(lines))
        end = next((i for i in rest if last is None or (last and lines[i].lstrip().startswith(last))), len(lines))
        result += [*([CUT] if start > at else []), *"\n".join(lines[start:end]).rstrip().splitlines()]
        at = end
    return "\n".join([*result, *([CUT] if at < len(lines) else [])]) + "\n"


class Session:
    """A folder with parts of the source tree, in which commands run one after the other, as in a shell."""

    def __init__(self, folder: Path, root: Path = ROOT) -> None:
        self.folder = self._at = folder
        for name in LINKED:
            if not (folder / name).exists():
                (folder / name).symlink_to(root / name)

    def run(self, block: Block) -> None:
        """Run the commands of a block.

        Raises:
            RuntimeError: one does not exit with 0, or takes too long.
        """
        for command in block.commands:
            code = f'{command}\ncode=$?\npwd >"{self.folder}/.pwd"\nexit $code'
            words = python.command(command) if block.language == "python" else ["bash", "-c", code]
            environment = {
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "BNN_DEPLOY_CACHE": str(self.folder / "cache"),
            }
            done = subprocess.run(
                words,
                cwd=self._at,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{block.page}: {command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            block.printed.append(
                done.stdout.replace(sys.prefix, "/home/you/venv").replace(str(ROOT), "/home/you/bnn-deploy")
            )
            if block.language != "python":
                self._at = Path((self.folder / ".pwd").read_text().strip())


_UNITS = "B|kB|MB|GB|ms|k|M|G|T|s|%|\N{MULTIPLICATION SIGN}|\N{DEGREE SIGN}C"

# What differs between two machines or two runs, and what stands for it.
_MASKS = [
    (r"\b(avx512bw|avx512|avx2|neon_dotprod|neon|scalar)\b", "ISA"),
    (r"\b[0-9a-f]{12,}\b", "#"),
    (rf"(?<![\w.])\d[\d,.]*(e[+-]\d+)?( ?({_UNITS})(?!\w))?", "#"),
    (r"(# below #)( \1)+", r"\1"),  # a histogram's bins, as many as have values
    ("NOISY", ""),
    ("\N{BOX DRAWINGS LIGHT HORIZONTAL}+", "-"),
]
_OF_THE_MACHINE = re.compile(
    r"\W*(machine|system|CPU|CPUs|cores|board|clock|temperature|throttling|note|memory|disk|Python|glibc|THROTTLED|NOISY)\b"
    r"|(Half of the time or more|Layers on floats|Not part of a layer|Words of 32 bits)\b"  # the slowest are first
)


def shape(shown: str) -> set[str]:
    """What of an output does not depend on the machine and the run: each line's first word or words, and its verdict.

    Of a row, that is the first cell, and the last one if it has no number; of a sentence, all of it but its numbers.
    """
    found = set()
    for line in shown.splitlines():
        if line in ("", CUT) or _OF_THE_MACHINE.match(line):
            continue
        for pattern, mask in _MASKS:
            line = re.sub(pattern, mask, line)
        cells = re.split(r"  +", line.strip())
        last = cells[-1] if len(cells) > 1 and not re.search(r"#|ISA|/|^(-|equal)$", cells[-1]) else ""
        found.add(f"{cells[0]} {last}".strip())
    return found


def differences(block: Block) -> list[str]:
    """The lines that a page shows and its commands did not print, after "-", and those printed but not shown, "+"."""
    before, now = shape(block.text), shape(block.rewritten)
    return [*(f"- {line}" for line in sorted(before - now)), *(f"+ {line}" for line in sorted(now - before))]


def write(page: Path, written: list[Block]) -> None:
    """Let a page show what its commands printed."""
    rest = iter(written)

    def block(match: re.Match[str]) -> str:
        return f"{match['notes']}```{match['language']}\n{next(rest).rewritten}```"

    page.write_text(_BLOCK.sub(block, page.read_text()))


def summary(found: list[Block]) -> str:
    """How many commands there are, and the reasons why some were not run."""
    count = sum(len(block.commands) for block in found)
    kept = [block for block in found if block.not_run is not None]
    not_run = sum(len(block.commands) for block in kept)
    lines = [f"{count} commands on {len({block.page for block in found})} pages: {count - not_run} run, {not_run} not:"]
    lines += [f"  {block.page}: {block.commands[0].splitlines()[0]}: {block.not_run}" for block in kept]
    return "\n".join(lines)


def main() -> int:
    """Run the commands of all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="let the pages show what the commands print")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--folder", type=Path, help="where to run them, to be kept; a temporary one if left out")
    parser.add_argument("pages", type=Path, nargs="*", help="all if left out")
    arguments = parser.parse_args()
    chosen = [path.resolve() for path in arguments.pages]
    found = {page: blocks(page) for page in pages() if page in chosen or not chosen}
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        session = Session((arguments.folder or Path(temporary)).resolve())
        for page, of_page in found.items():
            for block in [] if arguments.list else of_page:
                if block.not_run is None:
                    print(f"{block.page}: {block.commands[0].splitlines()[0]}", file=sys.stderr)
                    session.run(block)
                    lines = differences(block)
                    if lines and not arguments.write:
                        print(f"{block.page} shows something else than {block.commands[0]} prints:", *lines, sep="\n")
                        wrong += 1
            if arguments.write:
                write(page, of_page)
    print(summary([block for of_page in found.values() for block in of_page]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
