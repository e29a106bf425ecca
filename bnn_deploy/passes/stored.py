"""Parameters that a float model stores in few bits, and a DequantizeLinear makes floats of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

STORED = "bnn_deploy.stored"
"""The key, in the `meta` of an initializer, of the `Stored` that it was made of."""


@dataclass(frozen=True)
class Stored:
    """The constant inputs, by name, and the attributes of a DequantizeLinear."""

    inputs: dict[str, NDArray[Any]]
    attributes: dict[str, Any]
