"""Results in a notebook: one line in place of all their fields, a table as HTML, and a pandas DataFrame."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from html import escape
from typing import Any, ClassVar

from bnn_deploy.errors import SetupError

SHOWN_ROWS = 50
"""Most rows of a table in a notebook; `to_dataframe` has all."""


class NotebookResult(abc.ABC):
    """A result with rows: of a verification and of a conversion one per layer, of a profile one per node.

    Attributes:
        shown_columns: the keys that the table in a notebook has, of those that a row has.
    """

    shown_columns: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def headline(self) -> str:
        """What came out, in one line."""

    @abc.abstractmethod
    def rows(self) -> Sequence[dict[str, Any]]:
        """The rows, of plain types, all with the same keys."""

    def details(self) -> Sequence[str]:
        """Lines for the reader between the headline and the table."""
        return ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline()}>"

    def _repr_html_(self) -> str:
        """The headline, the details and the first rows as HTML; every text in it is escaped."""
        rows = self.rows()
        lines = [f"<p><b>{escape(self.headline())}</b></p>", *(f"<p>{escape(line)}</p>" for line in self.details())]
        if rows:
            columns = [column for column in self.shown_columns if column in rows[0]]
            head = "".join(f"<th>{escape(column)}</th>" for column in columns)
            cells = [[f"<td>{escape(_text(row[column]))}</td>" for column in columns] for row in rows[:SHOWN_ROWS]]
            body = "".join(f"<tr>{''.join(line)}</tr>" for line in cells)
            lines.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        if len(rows) > SHOWN_ROWS:
            lines.append(f"<p>and {len(rows) - SHOWN_ROWS} more rows: to_dataframe() has all</p>")
        return "".join(lines)

    def to_dataframe(self) -> Any:
        """The rows as a pandas.DataFrame.

        Raises:
            SetupError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise SetupError("to_dataframe() needs the package pandas: pip install pandas") from error
        return pandas.DataFrame(list(self.rows()))


def _text(value: Any) -> str:
    """A cell of a table."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
