"""A PyTorch graph whose sums of products have no order: summed in float64, and rounded once.

PyTorch does not specify the order in which a convolution adds its products: it changes with the device, the number of
threads and the batch. Added one after the other, thousands of equal ±alpha are rounded thousands of times, and always
in the same direction. Everything else is computed as it was, since an addition that rounds may be meant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_map

_SUMS = ("addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul", "mm")
"""The sums of products, by the names of their operators in ATen."""


class ExactSums(torch.fx.Interpreter):
    """Computes some tensors of a functional graph from others of it.

    Attributes:
        wanted: the names of the nodes.
        values: their values, once run.
    """

    def __init__(
        self, module: torch.fx.GraphModule, wanted: Collection[str], given: Mapping[str, NDArray[Any]]
    ) -> None:
        """For the names of nodes, and the values of some nodes, from which computation starts."""
        super().__init__(module)
        self._given = {name: torch.from_numpy(np.asarray(value)) for name, value in given.items()}
        self.wanted = wanted
        self.values: dict[str, NDArray[Any]] = {}
        pending = [node for node in module.graph.nodes if node.name in wanted]
        self._needed = set(pending)
        while pending:
            node = pending.pop()
            new = set() if node.name in given else set(node.all_input_nodes) - self._needed
            self._needed |= new
            pending += new

    def run_node(self, n: torch.fx.Node) -> Any:
        """The value of a node; None if no wanted one needs it."""
        if n not in self._needed:
            if n.op == "placeholder":
                super().run_node(n)  # takes it from the inputs
            return None
        result = self._given[n.name] if n.name in self._given else super().run_node(n)
        if n.name in self.wanted:
            self.values[n.name] = np.asarray(result)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operator, a sum of products of float32 in float64."""
        name = getattr(getattr(target, "overloadpacket", None), "__name__", "")
        if name not in _SUMS:
            return super().call_function(target, args, kwargs)
        wide = tree_map(lambda x: x.double() if _is_single(x) else x, (args, kwargs))
        result = super().call_function(target, *wide)
        return result.float() if any(map(_is_single, args)) else result


def _is_single(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == torch.float32


def behind(module: torch.fx.GraphModule, names: Collection[str]) -> set[str]:
    """The nodes that depend on some nodes, by name."""
    found = set()
    for node in module.graph.nodes:
        if any(before.name in names or before.name in found for before in node.all_input_nodes):
            found.add(node.name)
    return found
