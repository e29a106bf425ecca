"""A model running free, one segment after the other, which needs no session and no weights but the segments' own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.proof.backends import Arrays, RunError, Runner

if TYPE_CHECKING:
    from bnn_deploy.proof.pieces import Segment


@dataclass(frozen=True)
class Fed:
    """What a segment was fed with, and what a backend made of it.

    Attributes:
        feed: its inputs, by name.
        got: its output.
    """

    feed: Arrays
    got: NDArray[Any]


def run_chain(
    pieces: Sequence[Segment],
    runners: Mapping[str, Runner],
    x: Arrays,
    fed: Mapping[str, Fed],
    of_samples: Set[str],
) -> Arrays:
    """The tensors at the cuts when the model runs free.

    Where a segment gets for a sample what it was fed with before, to the last bit, it gives what it gave: mostly a few
    samples in which a bit has flipped run again.

    Args:
        pieces: the segments, in the order of the graph.
        runners: the output of a segment -> what runs it.
        x: the model's inputs.
        fed: the output of a segment -> what it was fed with for these samples; not every one need be there.
        of_samples: the tensors with a row for each sample.

    Raises:
        RunError: a segment does not run.
    """
    tensors = dict(x)
    for piece in pieces:
        tensor = piece.output.tensor
        try:
            feed = {name: tensors[name] for name in piece.inputs}
        except KeyError as error:
            raise RunError(f"segment '{piece.name}' reads '{error.args[0]}', which no segment makes") from error
        known = fed.get(tensor)
        if known is None or not {tensor, *piece.inputs} <= of_samples or not _same_form(feed, known):
            (tensors[tensor],) = runners[tensor](feed)
            continue
        tensors[tensor] = known.got
        differ = [(array != known.feed[name]).reshape(len(array), -1).any(axis=1) for name, array in feed.items()]
        again = np.flatnonzero(np.any(differ, axis=0))
        if len(again):
            (part,) = runners[tensor]({name: array[again] for name, array in feed.items()})
            tensors[tensor] = known.got.copy()
            tensors[tensor][again] = part
    return tensors


def _same_form(feed: Arrays, known: Fed) -> bool:
    return all(
        (array.shape, array.dtype) == (known.feed[key].shape, known.feed[key].dtype) for key, array in feed.items()
    )
