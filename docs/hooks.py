"""What mkdocs does with the pages beyond its plugins.

* Links to files of the source tree, which are no pages, become the files' names; one that is not there is a warning,
  which `--strict` makes an error.
* The page of the operators gets their definitions, which a reader of the source tree finds in bodies.py, and that of
  the architecture the section of CONTRIBUTING.md that a comment names.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("mkdocs.hooks")

_SECTION = re.compile(r"<!-- (\w+\.md): ([^>]*) -->")

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page's Markdown as mkdocs is to see it."""
    source = Path(page.file.abs_src_path)
    if page.file.src_uri == "operators.md":
        markdown = _with_definitions(markdown)
    markdown = _SECTION.sub(lambda name: _section(source.parent.parent / name[1], name[2]), markdown)

    def name(link: re.Match[str]) -> str:
        if not (source.parent / link[2]).exists():
            _LOG.warning("%s: there is no %s", page.file.src_uri, link[2])
        path = link[2].removeprefix("../")
        return link[1] if link[1].strip("`") == path else f"{link[1]} (`{path}`)"

    return _LINK.sub(name, markdown)


def _section(file: Path, title: str) -> str:
    """A section of a file at the top of the source tree, with its links as from a page."""
    section = re.search(rf"^## {title}\n.*?(?=^## |\Z)", file.read_text(), re.MULTILINE | re.DOTALL)
    if section is None:
        _LOG.warning("%s has no section %s", file.name, title)
        return ""
    return re.sub(r"\]\((?!\w+:|#)", "](../", section[0])


def _with_definitions(markdown: str) -> str:
    """The page of the operators, with each one's ONNX function at the end of its section."""
    import onnx
    import onnx_ir as ir

    from bnn_deploy.operators.bodies import functions

    for function in functions():
        # Without the names of the nodes, of which nothing depends.
        text = re.sub(r"\[node_\w+\] ", "", onnx.printer.to_text(ir.to_proto(function)))
        definition = (
            '<details markdown="1"><summary>Definition in standard ONNX operators</summary>\n\n'
            f"```text\n{text.strip()}\n```\n\n</details>\n\n"
        )
        section = re.compile(rf"^(## {function.name}\n.*?)(?=^## |^<!-- until here -->)", re.MULTILINE | re.DOTALL)
        markdown, count = section.subn(lambda match, text=definition: match[1] + text, markdown)
        if count != 1:
            _LOG.warning("operators.md: no section %s", function.name)
    return markdown
