"""The results of run.sh on a board: report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bnn_deploy.errors import SetupError, one_line
from bnn_deploy.json_form import JsonDocument, head
from bnn_deploy.proof.golden.check import GoldenVerification
from bnn_deploy.runtime.profile_results import ProfileReport


@dataclass(frozen=True)
class BoardReport(JsonDocument):
    """The results of run.sh on a board.

    Attributes:
        model: file name of the model as the bundle was made of it.
        target: the architecture that the bundle is for.
        manifest_sha256: checksum of the manifest, which identifies the bundle.
        golden: the check against the golden results.
        profile: the measurements; None if the check failed.
        versions: package -> version.
    """

    JSON_FORMAT = "board report"
    JSON_PROPERTIES: ClassVar = ("passed",)

    model: str
    target: str
    manifest_sha256: str
    golden: GoldenVerification
    profile: ProfileReport | None
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether the board reproduces the golden results."""
        return self.golden.passed


def parse_report(content: bytes, origin: str) -> dict[str, Any]:
    """Parse a report of a board, which may be of another version and lack entries.

    Args:
        content: of the file.
        origin: the board or the file, for messages.

    Raises:
        SetupError: it is no report, or of a format that this version does not read.
    """
    try:
        result = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{origin}: its report is not JSON: {one_line(error)}") from None
    if not isinstance(result, dict) or not isinstance(result.get("passed"), bool):
        raise SetupError(f"{origin}: its report does not say whether the check passed")
    known = head(BoardReport.JSON_FORMAT)
    if found := {key: result.get(key) for key in known if result.get(key) != known[key]}:
        of = ", ".join(f"{key} {value!r}" for key, value in found.items())
        raise SetupError(
            f"{origin}: its report has {of}, and this bnn-deploy reads {known['format']!r}, version "
            f"{known['version']}: make the bundle anew with it"
        )
    return result


def entry_at(value: Any, *names: str) -> Any:
    """The entry of a report under nested names, None where there is none: a board may be of another version."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
