"""One run of a converted model before its file gets its name."""

from __future__ import annotations

from collections.abc import Sequence

from bnn_deploy.errors import BnnDeployError, InputError, SetupError, about, one_line
from bnn_deploy.runtime.inputs import InputSpec, batch_size, random_feed
from bnn_deploy.runtime.session import load_session


def require_runs(converted: bytes, source: bytes, wanted: Sequence[InputSpec], name: str) -> None:
    """Load a converted model with the library, and run it on one random sample (or one batch, if that is fixed).

    Args:
        converted: the model.
        source: the float model that it was made of, run only if the converted one fails: to say whose fault it is.
        wanted: their inputs, with examples for open sizes.
        name: the source's name in errors.

    Raises:
        InputError: onnxruntime cannot run the source either.
        BnnDeployError: it runs the source, but not what was made of it.
        SetupError: as `load_session`.
    """
    with about(name):
        feed = random_feed(wanted, batch_size(wanted) or 1)
    try:
        load_session(converted, 1).run(None, feed)
    except SetupError:
        raise
    except Exception as error:  # onnxruntime's exception types are not public
        shapes = ", ".join(f"'{key}' {list(array.shape)}" for key, array in feed.items())
        try:
            load_session(source, 1, kernels=False).run(None, feed)
        except Exception as own:
            raise InputError(f"{name}: onnxruntime cannot run it on random inputs {shapes}: {one_line(own)}") from own
        raise BnnDeployError(
            f"{name}: a fault of bnn-deploy, please report it: onnxruntime runs the float model on inputs {shapes}, "
            f"but not the converted one ({one_line(error)}); nothing was written"
        ) from error
