"""Every command in README.md and docs/ runs, and prints what its page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

import bnn_deploy
from bnn_deploy.cli import ALIASES, COMMANDS, main
from bnn_deploy.quantities import TIMES
from docs.commands import ROOT, Block, Session, blocks, cut, differences, pages, shape, summary, write

PAGES = pages()


def test_every_command_runs_and_prints_what_its_page_shows(tmp_path: Path) -> None:
    session = Session(tmp_path)
    found = [block for page in PAGES for block in blocks(page)]
    wrong = []
    for block in found:
        if block.not_run is None:
            session.run(block)
            wrong += [f"{block.page}: {block.commands[0]}", *differences(block)] if differences(block) else []
    print(summary(found))
    assert wrong == [], "python tests/docs/commands.py --write lets the pages show what is printed"
    if missing := sorted({block.missing for block in found if block.missing}):
        pytest.skip(f"all but what needs {', '.join(missing)}")


def test_every_page_is_in_the_order() -> None:
    assert {path.name for path in PAGES} == {path.name for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_is_shown_in_another_way(page: Path) -> None:
    """All blocks with commands are understood, and no other block shows a command with an output."""
    text = page.read_text()
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    languages = ("console", "sh", "bash", "python")
    assert sum(language in languages for language, _ in fences) == len(blocks(page))
    assert [body for language, body in fences if language not in languages and re.search(r"^\$ ", body, re.M)] == []
    assert len(re.findall("<!-- (?:not run|needs|show): ", text)) == sum(block.notes for block in blocks(page))


def test_the_page_of_the_commands_has_them_all() -> None:
    titles = re.findall(r"^## ([a-z-]+)$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert titles == list(COMMANDS)


def test_the_page_of_python_has_the_whole_api() -> None:
    shown = re.findall(r"^::: bnn_deploy\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(set(bnn_deploy.__all__) - {"__version__"})


def mentioned(page: Path) -> list[list[str]]:
    """The words of each command of bnn-deploy in running text and in blocks."""
    shown = [command for block in blocks(page) if block.language != "python" for command in block.commands]
    inline = re.findall(r"`(bnn-deploy [^`\n]+)`", page.read_text())
    return [shlex.split(command, comments=True) for command in [*shown, *inline] if command.startswith("bnn-deploy ")]


def unknown(words: list[str]) -> list[str]:
    """The command, or the options of one, that bnn-deploy does not have."""
    name = next((word for word in words[1:] if not word.startswith("-")), None)
    if name is None or not re.fullmatch(r"[a-z-]+", name):
        return []
    if name not in COMMANDS | ALIASES:
        return [name]
    command = main.get_command(click.Context(main), name)
    assert command is not None
    known = {option for parameter in [*command.params, *main.params] for option in parameter.opts} | {"--help", "-h"}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [option for option in options if option not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_mentioned_exists(page: Path) -> None:
    assert [(words, unknown(words)) for words in mentioned(page) if unknown(words)] == []


def test_an_option_that_does_not_exist_is_found() -> None:
    assert unknown(["bnn-deploy", "verify", "m.onnx", "--agianst", "x"]) == ["--agianst"]
    assert unknown(["bnn-deploy", "verfy", "m.onnx"]) == ["verfy"]


def page_of(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_what_differs_is_found_and_written(tmp_path: Path) -> None:
    text = "text\n\n```console\n$ echo 'one of 12'\ntwo of 12\n$ true\n```\n\n```python\nprint(1)\n```\n"
    page = page_of(tmp_path, text)
    (tmp_path / "work").mkdir()
    session = Session(tmp_path / "work")
    found = blocks(page, tmp_path)
    for block in found:
        session.run(block)
    assert differences(found[0]) == ["- two of #", "+ one of #"]
    assert differences(found[1]) == []
    write(page, found)
    assert page.read_text() == text.replace("two", "one")
    again = blocks(page, tmp_path)[0]
    session.run(again)
    assert differences(again) == []


def test_a_histogram_has_as_many_bins_as_this_machine_finds() -> None:
    few, many = "In units: 7 below 0.001.", "In units: 72,836 below 0.001, 9 below 0.01, 2 below 0.1."
    assert shape(few) == shape(many) != shape("In units: 7 beyond 0.001.")


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    session = Session(tmp_path)
    with pytest.raises(RuntimeError, match="exit code 3"):
        session.run(Block("page.md", "sh", "exit 3\n"))
    with pytest.raises(RuntimeError, match="exit code 1"):
        session.run(Block("page.md", "python", "raise ValueError\n"))


def test_a_session_is_one_shell(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.run(Block("page.md", "sh", "mkdir x\ncd x\n# a remark\ntouch y\n"))
    block = Block("page.md", "console", "$ ls \\\n  -1\n")
    session.run(block)
    assert block.printed == ["y\n"]
    assert block.rewritten == "$ ls \\\n  -1\ny\n"


def test_blocks_say_what_is_not_run_and_what_is_shown(tmp_path: Path) -> None:
    text = "<!-- not run: a board -->\n```sh\nssh x\nls\n```\n"
    text += "<!-- show: a | b ... d | e ... -->\n```console\n$ x\n$ printed\n```\n"
    text += "<!-- needs: no-such-program -->\n```sh\ntrue\n```\n<!-- needs: bash -->\n```sh\ntrue\n```\n"
    first, second, third, fourth = blocks(page_of(tmp_path, text), tmp_path)
    assert (first.not_run, second.not_run, first.missing) == ("a board", None, None)
    assert (third.not_run, third.missing) == ("no-such-program is not installed", "no-such-program")
    assert (fourth.not_run, fourth.missing) == (None, None)
    assert [block.notes for block in (first, second, third, fourth)] == [1, 1, 1, 1]
    assert second.parts == [("a", None), ("b", "d"), ("e", "")]
    assert second.commands == ["x"]
    assert summary([first, second]) == "3 commands on 1 pages: 1 run, 2 not:\n  page.md: ssh x: a board"


def test_the_parts_of_an_output() -> None:
    printed = "a\nb\nc\nd\n\ne\n"
    assert cut(printed, []) == printed
    assert cut(printed, [("b", "d")]) == "...\nb\nc\n...\n"
    assert cut(printed, [("a", "c"), ("e", "")]) == "a\nb\n...\ne\n"
    assert cut(printed, [("b", None)]) == "...\nb\n...\n"
    with pytest.raises(ValueError, match="no line begins with 'x'"):
        cut(printed, [("x", "")])


LINE = "\N{BOX DRAWINGS LIGHT HORIZONTAL}"


def test_the_shape_leaves_out_what_depends_on_the_machine() -> None:
    here = (
        f"kernels   avx2, scalar\nmachine  AMD\nmedian  0.039 ms NOISY  3.09{TIMES} faster\nconv1  bits  12  ok\nin 2 s"
    )
    there = f"kernels  scalar\nmedian  12.1 ms  1.2{TIMES} slower\nconv1  bits  13  ok\nin 31.5 s"
    assert shape(f"{here}\n{3 * LINE}") == shape(f"{there}\n{5 * LINE}")
    for changed in (there.replace("ok", "FAILED"), there.replace("conv1", "conv2"), there.replace("in", "by")):
        assert shape(here) != shape(changed)
