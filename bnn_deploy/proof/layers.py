"""Question 2 of the proof: each segment of the model, fed with the reference's activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnn_deploy.errors import one_line
from bnn_deploy.proof.backends import Arrays, RunError, Runner
from bnn_deploy.proof.chain import Fed
from bnn_deploy.proof.exact_zero import is_exact_sum, signed_tensor
from bnn_deploy.proof.histogram import Histogram
from bnn_deploy.proof.margins import (
    Magnitudes,
    absolute_error,
    chunks,
    count_differing,
    cut_kind,
    differences,
    in_units,
    magnitudes,
    settle_zeros,
    zero_flips,
)
from bnn_deploy.proof.results import LayerResult, Tolerances

if TYPE_CHECKING:
    from bnn_deploy.proof.cuts import Cut
    from bnn_deploy.proof.pieces import Segment
    from bnn_deploy.proof.reference import Reference


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        indices: of each in the data.
        x: the model's inputs by name.
        values: the reference's tensors for them.
    """

    indices: Sequence[int]
    x: Arrays
    values: Arrays

    @property
    def size(self) -> int:
        """Their number."""
        return len(self.indices)

    def sample(self, row: int, rows: int) -> int:
        """The index in the data of the sample that one of a tensor's rows belongs to."""
        return self.indices[row * self.size // rows]


@dataclass
class _Fed:
    """A segment's input for a batch, and what one backend made of it, so that others that make the same need no look.

    Attributes:
        feed: the input.
        negative: the inputs to run besides, see `LayerCheck._with_zeros_negative`.
        seen: an output; None if there is none yet.
        found: how it compares.
        exact: the batch with exact sums, once it was wanted: one entry, None if the reference cannot compute them.
    """

    feed: Arrays
    negative: list[Arrays]
    seen: NDArray[Any] | None = None
    found: tuple[LayerResult, float] | None = None
    exact: list[Batch | None] = field(default_factory=list)


class Expectations:
    """The reference's values of the cuts.

    Attributes:
        wanted: the reference's tensors that they need.
    """

    def __init__(self, reference: Reference, cuts: Sequence[Cut], outputs: Mapping[str, str]) -> None:
        """For cuts of a model with these outputs: its tensor -> the reference's."""
        self._reference = reference
        self._cuts = {cut.tensor: cut for cut in cuts}
        self._outputs = outputs
        self.wanted = {name for cut in cuts for name in self._sources(cut)}
        self.wanted |= {name for cut in cuts if cut.is_bits for name in self._before_names(cut)}

    def _sources(self, cut: Cut) -> tuple[str, ...]:
        """The reference's tensors for a cut; for a model's output, the reference's output, whatever its name."""
        return cut.place.tensors if cut.source in self._reference.names else (self._outputs[cut.tensor],)

    def value(self, cut: Cut, values: Arrays) -> NDArray[Any]:
        """The reference's value of a cut."""
        first, *_ = self._sources(cut)
        return cut.place.read(values if first == cut.source else values | {cut.source: values[first]})

    def stored(self, names: Iterable[str], batch: Batch) -> Arrays:
        """The reference's values of cuts, as the model stores them, and of the model's inputs, by name."""
        cut = self._cuts
        return {
            name: cut[name].encode(self.value(cut[name], batch.values)) if name in cut else batch.x[name]
            for name in names
        }

    def zeros_negative(self, names: Iterable[str], values: Arrays) -> Arrays:
        """Of some tensors those that are cuts with signs of exactly 0, stored with -1 instead of +1 there."""
        changed: Arrays = {}
        for name in names:
            cut = self._cuts.get(name)
            if cut is None or not cut.has_signs:
                continue
            value = self.value(cut, values)
            if (value == 0).any():
                changed[name] = cut.encode(np.where(value == 0, np.float32(-1), value))
        return changed

    def _before_names(self, cut: Cut) -> tuple[str, ...]:
        """The reference's tensors whose sign a bit cut holds; none behind a pool of signs."""
        if cut.before is not None:
            return cut.before.tensors
        name = self._reference.before_sign(cut.source)
        return () if name is None else (name,)

    def before(self, cut: Cut, values: Arrays) -> NDArray[Any]:
        """The pre-activations of a bit cut; behind a pool of signs the signs themselves, which no rounding flips."""
        value = self.value(cut, values)
        if cut.before is not None:
            return cut.pre_activation(values, value.shape)
        return next((values[name] for name in self._before_names(cut)), value)

    def is_before(self, cut: Cut, other: Cut | None, given: NDArray[Any] | None, values: Arrays) -> bool:
        """Whether another cut, or else an input of the model with the numbers `given`, is what a bit cut is made of."""
        if other is not None:
            return not other.is_bits and other.source in self._before_names(cut)
        return given is not None and np.array_equal(given, self.before(cut, values))

    def sum_exactly(self, cut: Cut, inputs: Sequence[Cut], others: Sequence[str], batch: Batch) -> Batch | None:
        """The batch with the values of a cut, and of its pre-activations, made of exact sums of products.

        Args:
            cut: it.
            inputs: the cuts that it is computed from.
            others: the inputs of the model that it is computed from.
            batch: the samples.

        Returns:
            The batch; None if the reference cannot sum in another way.
        """
        wanted = {*self._sources(cut), *(self._before_names(cut) if cut.is_bits else ())}
        fed = {*others, *(name for other in inputs for name in self._sources(other))}
        found = self._reference.sum_exactly(batch.x, batch.values, wanted - fed, fed)
        return None if found is None else replace(batch, values=batch.values | found)

    def measured(self, cut: Cut, values: Arrays) -> NDArray[Any]:
        """The tensor in whose magnitudes the differences of a cut are stated: a float itself, bits' pre-activations."""
        return self.before(cut, values) if cut.is_bits else self.value(cut, values)


class LayerCheck:
    """One segment against the reference, batch by batch.

    Attributes:
        result: what the batches so far have shown.
        scale: the magnitudes of its output's `Expectations.measured`.
    """

    def __init__(
        self,
        piece: Segment,
        cuts: Mapping[str, Cut],
        expectations: Expectations,
        tolerances: Tolerances,
        shown: str,
    ) -> None:
        """For a segment of a model with these cuts; `shown` is the backend whose histogram is kept."""
        self.piece = piece
        self.cut = piece.output
        self.scale = Magnitudes()
        self._cuts = cuts
        self._expectations = expectations
        wide = piece.quantized
        self._tolerance = tolerances.margin(wide) if self.cut.is_bits else tolerances.relative(wide)
        self._shown = shown
        self.result = replace(self._new_result(), layer=piece.name, quantized=wide)
        self._signed = signed_tensor(piece.model, self.cut.tensor) if self.cut.has_signs else None

    def signs_of(self, batch: Batch) -> str | None:
        """The tensor of the model that its bits are the signs of, if it stands for the reference's pre-activation."""
        name = self._signed
        if name is None or not self._expectations.is_before(
            self.cut, self._cuts.get(name), batch.x.get(name), batch.values
        ):
            return None
        return name

    def values_of(self, batch: Batch) -> list[NDArray[Any]]:
        """The reference's values that it is fed with and held against."""
        value = self._expectations.value
        fed = [
            value(self._cuts[name], batch.values) if name in self._cuts else batch.x[name] for name in self.piece.inputs
        ]
        return [*fed, value(self.cut, batch.values), self._expectations.measured(self.cut, batch.values)]

    def measure(self, values: Arrays) -> None:
        """Add a batch to `scale`; of shapes that do not fit, `check` will complain."""
        try:
            self.scale.add(self._expectations.measured(self.cut, values))
        except (ValueError, IndexError):  # from numpy
            return

    def scale_of(self, values: Arrays) -> Magnitudes:
        """The magnitudes for some samples: `scale`, or their own where the channels are samples, as in [T, N, C]."""
        measured = self._expectations.measured(self.cut, values)
        return self.scale if self.scale.fits(measured) else magnitudes(measured)

    def check(self, runners: Mapping[str, Runner], batches: Mapping[str, Batch]) -> dict[str, Fed]:
        """Compare the backends on one batch, of which slow ones may take fewer samples.

        Args:
            runners: backend -> its runner of the segment.
            batches: backend -> the samples that it runs; the largest batch comes first.

        Returns:
            What each backend made of what the segment was fed with, if it ran.
        """
        ran: dict[str, Fed] = {}
        before = self.result
        worst = replace(before, differing=0, behind_zeros=0)
        fed: dict[int, _Fed] = {}
        for backend, batch in batches.items():
            try:
                if id(batch) not in fed:
                    fed[id(batch)] = self._fed(batch)
                (got,) = runners[backend](fed[id(batch)].feed)
                ran[backend] = Fed(fed[id(batch)].feed, got)
                now, rounded, behind = self._check_backend(runners[backend], got, fed[id(batch)], batch)
            except (RunError, ValueError, IndexError) as error:  # from numpy: shapes that do not fit
                worst.error, worst.passed = f"it does not fit the reference: {one_line(error)} ({backend})", False
                continue
            worst.reference_rounding = max(worst.reference_rounding, rounded)
            worst.behind_zeros = max(worst.behind_zeros, behind)
            worst.differing = max(worst.differing, now.differing)
            for name in ("margin", "relative_error"):
                if getattr(now, name) > getattr(worst, name):
                    setattr(worst, name, getattr(now, name))
                    worst.worst = f"{now.worst} ({backend})"
            worst.max_error = max(worst.max_error, now.max_error)
            worst.passed &= now.passed
            if backend == self._shown:
                worst.histogram = before.histogram.plus(now.histogram)
        expected = self._expectations.value(self.cut, next(iter(batches.values())).values)
        worst.values += expected.size
        worst.zeros += int((expected == 0).sum()) if self.cut.has_signs else 0
        worst.differing += before.differing
        worst.behind_zeros += before.behind_zeros
        self.result = worst
        return ran

    def _check_backend(self, run: Runner, got: NDArray[Any], fed: _Fed, batch: Batch) -> tuple[LayerResult, float, int]:
        """One backend, which gave `got`, on one batch.

        Returns:
            What was found; the margin or error that only the order of the reference's sums explains; and the number of
            values that depend on a sign of exactly 0.
        """
        others = [run(other)[0] for other in fed.negative]
        behind = count_differing(self.cut, got, others) if others else 0
        if not others and fed.found is not None and fed.seen is not None and _identical(got, fed.seen):
            return *fed.found, behind  # another backend's, to the last bit
        now, rounded = self._compare(got, others, batch), 0.0
        # Where no rounding at all explains it, the order of a sum does not, either.
        if not now.passed and np.isfinite(max(now.margin, now.relative_error)):
            if not fed.exact:
                fed.exact = [self.sum_exactly(batch)]
            (again,) = fed.exact
            against = now if again is None else self._compare(got, others, again)
            if against.passed:
                now, rounded = against, max(now.margin, now.relative_error)
        if fed.seen is None and not others:
            fed.seen, fed.found = got, (now, rounded)
        return now, rounded, behind

    def sum_exactly(self, batch: Batch) -> Batch | None:
        """The batch with this segment's output as exact sums give it; None if the reference cannot compute them."""
        fed = [name for name in self.piece.inputs if name not in self._cuts]
        return self._expectations.sum_exactly(
            self.cut, [self._cuts[name] for name in self.piece.inputs if name in self._cuts], fed, batch
        )

    def _compare(self, got: NDArray[Any], others: Sequence[NDArray[Any]], batch: Batch) -> LayerResult:
        """Compare the segment's output with the reference's; `others` are those with -1 for signs of exactly 0."""
        expected = self._expectations.value(self.cut, batch.values)
        settled = settle_zeros(self.cut, got, others, expected) if others else got
        compare = self._compare_bits if self.cut.is_bits else self._compare_floats
        return compare(settled, expected, batch)

    def _fed(self, batch: Batch) -> _Fed:
        """What the segment is fed with: the reference's values of its inputs, as the model stores them."""
        feed = self._expectations.stored(self.piece.inputs, batch)
        return _Fed(feed, self._with_zeros_negative(feed, batch.values))

    def _with_zeros_negative(self, feed: Arrays, values: Arrays) -> list[Arrays]:
        """The inputs of the segment with -1 instead of +1 where the reference's sign is 0; empty if no sign is 0.

        Where two inputs have such zeros, also with -1 in one of them alone: -1 times -1 is +1 times +1.
        """
        changed = self._expectations.zeros_negative(self.piece.inputs, values)
        alone = [{name: array} for name, array in changed.items()] if len(changed) > 1 else []
        return [{**feed, **some} for some in (changed, *alone) if some]

    def _new_result(self) -> LayerResult:
        return LayerResult("", self.cut.source, cut_kind(self.cut), histogram=Histogram(self._tolerance))

    def _compare_bits(self, got: NDArray[Any], expected: NDArray[Any], batch: Batch) -> LayerResult:
        """Compare bits or levels with the reference's."""
        result = self._new_result()
        before = self._expectations.before(self.cut, batch.values)
        flips = differences(self.cut, got, expected, before, self.scale_of(batch.values))
        result.differing = len(flips)
        if result.differing:
            signed = self.signs_of(batch)
            if signed is not None and is_exact_sum(self.piece.model, signed):
                flips = flips.infinite(zero_flips(flips, expected, before))
            result.histogram.add(flips.margins)
            place, result.margin = flips.largest()
            result.worst = (
                f"worst at sample {batch.sample(place[0], len(expected))}, channel {place[1]}"
                f"{f', position {[*place[2:]]}' if place[2:] else ''}: pre-activation {float(before[place]):.3g}"
            )
            result.passed = result.margin <= self._tolerance
        return result

    def _compare_floats(self, got: NDArray[Any], expected: NDArray[Any], batch: Batch) -> LayerResult:
        """Compare floats, or integers, with the reference's."""
        result = self._new_result()
        got = got.reshape(expected.shape)
        scale = self.scale_of(batch.values)
        largest = -1.0
        for rows in chunks(expected):
            error = absolute_error(got[rows], expected[rows])
            relative = in_units(error, expected, scale)
            result.histogram.add(relative)
            result.max_error = max(result.max_error, float(error.max()))
            if float(relative.max()) <= largest:
                continue
            place = tuple(int(i) for i in np.unravel_index(int(relative.argmax()), relative.shape))
            largest = result.relative_error = float(relative.max())
            values = f"{float(got[rows][place]):.6g} instead of {float(expected[rows][place]):.6g}"
            where = ""
            if place:
                sample = batch.sample(rows.start + place[0], len(expected))
                where = f"worst at sample {sample}, index {[*place[1:]]}: "
            result.worst = where + values
        result.passed = result.relative_error <= self._tolerance
        return result


def _identical(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return first.dtype == second.dtype and np.array_equal(first, second)
