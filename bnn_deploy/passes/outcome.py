"""What a pass did, and what it declined."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir


@dataclass(frozen=True)
class Decline:
    """A node that a pass looked at and left alone.

    Attributes:
        node: its name.
        op_type: its operator.
        reason: why, as one sentence for the user.
        has_sign_input: whether it is a layer whose input is a sign, so that it looks as if it was meant to be binary.
    """

    node: str
    op_type: str
    reason: str
    has_sign_input: bool = False


@dataclass
class PassResult:
    """What a pass did.

    Attributes:
        modified: number of rewrites.
        declined: a reason for each node that it declined.
    """

    modified: int = 0
    declined: list[Decline] = field(default_factory=list)

    def decline(self, node: ir.Node, reason: str) -> None:
        """Record that `node` was left alone."""
        self.declined.append(Decline(display_name(node), node.op_type, reason))


def display_name(node: ir.Node) -> str:
    """What reports call a node: its name, else its output's."""
    return node.name or node.outputs[0].name or ""
