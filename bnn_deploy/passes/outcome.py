"""What a pass did, and what it declined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from bnn_deploy.passes.reasons import ExactZeros, ModelInput, RealInput, Reason


@dataclass(frozen=True)
class Decline:
    """A node that a pass looked at and left alone.

    Attributes:
        node: its name.
        op_type: its operator.
        why: the reason.
        unpacked: why its weights are not stored as bits either, for a layer that stays float; None if they are, or if
            nothing was declined there.
    """

    node: str
    op_type: str
    why: Reason
    unpacked: Reason | None = None

    @property
    def reason(self) -> str:
        """Why, as one sentence for the user."""
        more = "" if self.unpacked is None else f"; its weights are not stored as bits: {self.unpacked}"
        return f"{self.why}{more}"

    @property
    def has_sign_input(self) -> bool:
        """Whether it is a layer whose input is a sign, so that it looks as if it was meant to be binary."""
        return self.why.reads_sign

    def advice(self, last: bool = False) -> str:
        """What to change so that the layer need not stay float.

        Args:
            last: whether no other layer comes after it.
        """
        why = self.why
        if isinstance(self.unpacked, ExactZeros) and not isinstance(why, ModelInput | RealInput):
            why = self.unpacked  # no bit could hold these weights, whatever stands before them
        return (why.last_advice if last else "") or why.advice

    def to_json(self) -> dict[str, Any]:
        """Plain types, for json.dumps."""
        return {
            "node": self.node,
            "op_type": self.op_type,
            "reason": self.reason,
            "has_sign_input": self.has_sign_input,
        }


@dataclass
class PassResult:
    """What a pass did.

    Attributes:
        modified: number of rewrites.
        declined: a reason for each node that it declined.
    """

    modified: int = 0
    declined: list[Decline] = field(default_factory=list)

    def decline(self, node: ir.Node, why: Reason) -> None:
        """Record that `node` was left alone."""
        self.declined.append(Decline(display_name(node), node.op_type, why))


def display_name(node: ir.Node) -> str:
    """What reports call a node: its name, else its output's."""
    return node.name or node.outputs[0].name or ""
