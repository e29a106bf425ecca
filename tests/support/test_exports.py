"""Shared exports: which modules are equal, and that copies are independent."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnn_deploy.source import latent_weights
from bnn_deploy.source.torch_export import export_float
from support.exports import SharedExports


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor


class Unwritable:
    def __reduce__(self) -> str:
        raise TypeError("its content cannot be written")

    def __deepcopy__(self, memo: object) -> Unwritable:
        return self


def run(exports: SharedExports, module: nn.Module, x: Tensor) -> Tensor:
    return exports(module, (3,)).program.module()(x)


@pytest.mark.usefixtures("seeded_torch")
def test_the_same_module_is_exported_once_and_another_anew() -> None:
    exports, module, x = SharedExports(), Scaled(2).eval(), torch.randn(4, 3)
    assert torch.equal(run(exports, module, x), module(x))
    assert torch.equal(run(exports, copy.deepcopy(module), x), module(x))
    assert exports.hits == 1
    changed = [copy.deepcopy(module), copy.deepcopy(module), copy.deepcopy(module)]
    changed[0].factor = 3
    changed[1].layer.weight.data[1, 2] += 1
    changed[2].layer = nn.Sequential(changed[2].layer, nn.Tanh())
    for other in changed:
        assert not torch.equal(other(x), module(x))
        assert torch.equal(run(exports, other, x), other(x))
    with pytest.raises(Exception, match="does not run on an input of shape"):
        exports(module, (4,))
    assert exports.hits == 1


def test_classes_of_the_same_name_are_not_the_same() -> None:
    exports, x = SharedExports(), torch.randn(4, 3)
    modules = []
    for text in ("x * 2", "x * 3"):
        scope: dict[str, type[nn.Module]] = {"nn": nn, "__name__": __name__}  # type: ignore[dict-item]
        exec(f"class Again(nn.Module):\n    def forward(self, x):\n        return {text}", scope)
        globals()["Again"] = scope["Again"]  # where pickle looks for it
        modules.append(scope["Again"]())
        assert torch.equal(run(exports, modules[-1], x), modules[-1](x))
    assert not torch.equal(modules[0](x), modules[1](x))
    assert exports.hits == 0


def test_a_function_is_its_code() -> None:
    exports, x = SharedExports(), torch.randn(4, 3)

    class Local(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    def times(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: x * factor

    results = [run(exports, Local(function), x) for function in (times(2), times(3), lambda x: x + 2, times(2))]
    assert all(
        torch.equal(result, wanted) for result, wanted in zip(results, (x * 2, x * 3, x + 2, x * 2), strict=True)
    )
    assert exports.hits == 1


def test_a_module_with_content_that_cannot_be_written_is_exported_anew() -> None:
    exports, module, x = SharedExports(), Scaled(2).eval(), torch.randn(4, 3)
    module.thing = Unwritable()
    for _ in range(2):
        assert torch.equal(run(exports, module, x), module(x))
    assert exports.hits == 0


def test_a_copy_is_its_own() -> None:
    exports, module, x = SharedExports(), Scaled(2).eval(), torch.randn(4, 3)
    first = exports(module, (3,))
    first.program.state_dict["layer.weight"].data.zero_()
    weight = first.model.graph.initializers["layer.weight"]
    weight.const_value = None
    first.model.graph.remove(first.model.graph[-1], safe=False)
    second = exports(module, (3,))
    assert exports.hits == 1
    assert torch.equal(second.program.module()(x), module(x))
    value = second.model.graph.initializers["layer.weight"].const_value
    assert value is not None and np.array_equal(value.numpy(), module.layer.weight.detach().numpy())
    assert len(second.model.graph) == len(export_float(module, (3,)).model.graph)


def test_the_tests_share_their_exports() -> None:
    assert isinstance(latent_weights.export_float, SharedExports)


@pytest.mark.usefixtures("own_exports")
def test_but_for_those_that_ask_for_their_own() -> None:
    assert latent_weights.export_float is export_float
