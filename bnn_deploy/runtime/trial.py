"""One run of a converted model before its file gets its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnn_deploy.errors import BnnDeployError, InputError, SetupError, about, one_line
from bnn_deploy.runtime.inputs import InputSpec, batch_size, random_feed
from bnn_deploy.runtime.session import load_session

MOST_BODIES = 50
"""Nodes with function bodies, up to which stock onnxruntime runs a model here: the time in which it puts the bodies in
their places grows with the square of their number."""


def require_runs(converted: bytes, bodies: int, source: bytes, wanted: Sequence[InputSpec], name: str) -> None:
    """Run a converted model on one random sample, or one batch, if that is fixed, beside its source.

    It runs with the library and, unless it has more than MOST_BODIES nodes with function bodies, in stock onnxruntime.
    The outputs must have the types and sizes of the source's. Their values may differ where a sign of about 0 may be
    either: `proof.values` compares those, layer by layer.

    Args:
        converted: the model.
        bodies: the number of its nodes with function bodies.
        source: the float model that it was made of; if the converted one fails, it says whose fault that is.
        wanted: their inputs, with examples for open sizes.
        name: the source's name in errors.

    Raises:
        InputError: onnxruntime cannot run the source either.
        BnnDeployError: it runs the source, but not what was made of it, or that gives something else in kind.
        SetupError: as `load_session`.
    """
    with about(name):
        feed = random_feed(wanted, batch_size(wanted) or 1)
    shapes = ", ".join(f"'{key}' {list(array.shape)}" for key, array in feed.items())
    fault = f"{name}: a fault of bnn-deploy, please report it"
    results = []
    for kernels in (True, False) if bodies <= MOST_BODIES else (True,):
        try:
            # Not folded: the weights of a whole network as floats would take many times the memory.
            results.append(load_session(converted, 1, kernels=kernels, fold=kernels).run(None, feed))
        except SetupError:
            raise
        except Exception as error:  # onnxruntime's exception types are not public
            try:
                load_session(source, 1, kernels=False).run(None, feed)
            except Exception as own:
                raise InputError(
                    f"{name}: onnxruntime cannot run it on random inputs {shapes}: {one_line(own)}"
                ) from own
            how = "" if kernels else " by its function bodies"
            raise BnnDeployError(
                f"{fault}: onnxruntime runs the float model on inputs {shapes}, "
                f"but not the converted one{how} ({one_line(error)}); nothing was written"
            ) from error
    try:
        session = load_session(source, 1, kernels=False)
        expected = session.run(None, feed)
    except Exception:  # it runs only without what was converted
        return
    for given in results:
        _require_kind(session.get_outputs(), given, expected, f"{fault}: on inputs {shapes}")


def _require_kind(outputs: Sequence[Any], given: Sequence[Any], expected: Sequence[Any], where: str) -> None:
    """Raise BnnDeployError unless outputs have the types and sizes that a float model's have."""
    for output, got, wants in zip(outputs, given, expected, strict=True):
        # Sizes that the model leaves open may depend on values, and those on a sign of about 0. Of another batch, a
        # traced model may make its example's, which is in its constants.
        stated = [i for i, size in enumerate(output.shape) if i > 0 and isinstance(size, int)]
        if (got.dtype, got.ndim) != (wants.dtype, wants.ndim) or any(got.shape[i] != wants.shape[i] for i in stated):
            raise BnnDeployError(
                f"{where} output '{output.name}' of the converted model is {got.dtype} "
                f"{list(got.shape)}, and of the float one {wants.dtype} {list(wants.shape)}; nothing was written"
            )
