"""What a pass did, and what it declined."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnn_deploy.errors import with_options
from bnn_deploy.passes.reasons import ExactZeros, ModelInput, RealInput, Reason

PARTS = "bnn_deploy.parts"
"""Key, in `meta`, of a node: the names of the nodes of the float graph that passes made it of."""


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

    JSON_OMITTED: ClassVar = ("why", "unpacked")
    JSON_PROPERTIES: ClassVar = ("reason", "has_sign_input")

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
        return with_options((why.last_advice if last else "") or why.advice)


@dataclass(frozen=True)
class Rewrite:
    """A rewrite that a pass made.

    Attributes:
        node: the name of the node that was rewritten, or that took others in: of a layer, the layer's.
        absorbed: the names of the nodes of the float graph that became part of it.
    """

    node: str
    absorbed: tuple[str, ...] = ()


class Outcome(ir.passes.PassResult):
    """What a pass did.

    Attributes:
        rewrites: in the order in which they were made.
        declined: a reason for each node that it declined.
    """

    def __init__(self, model: ir.Model, rewrites: Iterable[Rewrite] = ()) -> None:
        self.rewrites = list(rewrites)
        self.declined: list[Decline] = []
        super().__init__(model, bool(self.rewrites))

    @property
    def count(self) -> int:
        """Number of rewrites."""
        return len(self.rewrites)

    def rewrote(self, node: ir.Node, *absorbed: ir.Node) -> None:
        """Record that `node` was rewritten, or made, and that others became part of it."""
        take_in(node, *absorbed)
        self.rewrites.append(Rewrite(display_name(node), tuple(part for other in absorbed for part in parts(other))))
        self.modified = True

    def decline(self, node: ir.Node, why: Reason) -> None:
        """Record that `node` was left alone."""
        self.declined.append(Decline(display_name(node), node.op_type, why))


class Pass(ir.passes.InPlacePass):
    """A rewrite of a model's main graph in place.

    Attributes:
        needs: what must hold of the model at the pass's place in the pipeline, see `passes.conditions`.
        checked: whether `needs` is checked. The tests set it: in use the order of `passes.pipeline` is relied on, and a
            user's odd graph that breaks a condition is no error, but declined.
    """

    needs: ClassVar[tuple[Callable[[ir.Model], str], ...]] = ()
    checked: ClassVar[bool] = False

    def __call__(self, model_or_result: ir.Model | ir.passes.PassResult, /) -> Outcome:
        """Run on a model, or on that of another pass's outcome."""
        result = super().__call__(model_or_result)
        assert isinstance(result, Outcome)
        return result

    @abc.abstractmethod
    def call(self, model: ir.Model) -> Outcome:
        """Run on every node of the model's main graph."""

    def requires(self, model: ir.Model) -> None:
        """Check `needs`, if `checked`.

        Raises:
            onnx_ir.passes.PreconditionError: names the pass, the condition and the node.
        """
        if not self.checked:
            return
        for condition in self.needs:
            if broken := condition(model):
                raise ir.passes.PreconditionError(f"{type(self).__name__} needs {condition.__name__}: {broken}")


def parts(node: ir.Node) -> tuple[str, ...]:
    """The names of the nodes of the float graph that `node` was made of: its own, if it is one that nothing changed."""
    return tuple(node.meta.get(PARTS, ()))


def take_in(node: ir.Node, *others: ir.Node) -> None:
    """Make the parts of other nodes parts of `node`."""
    node.meta[PARTS] = tuple(dict.fromkeys(part for other in (node, *others) for part in parts(other)))


def display_name(node: ir.Node) -> str:
    """What reports call a node: its name, else its output's."""
    return node.name or node.outputs[0].name or ""
