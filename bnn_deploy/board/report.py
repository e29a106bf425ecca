"""The results of run.sh on a board: report.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnn_deploy.json_form import JsonDocument
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
