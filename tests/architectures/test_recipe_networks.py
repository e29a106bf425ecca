"""The recipe's three networks: keys, shapes and values against the published description, written out here by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_deploy.architectures import (
    ARCHITECTURES,
    NIN,
    AlexNet,
    BinaryNetMLP,
    BinaryNetVGG,
    BiRealNet18,
    DoReFaVGG,
    LeNet5,
    ReActNet,
    RecipeNetwork,
    XnorAlexNet,
)
from bnn_deploy.architectures.blocks import BinConv2d, BinLinear, clamp_gamma

pytestmark = pytest.mark.usefixtures("seeded_torch")

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


def batch_norm(name: str, channels: int, affine: bool = True) -> Shapes:
    """The keys of one BatchNorm."""
    names = ["running_mean", "running_var"] + (["weight", "bias"] if affine else [])
    return {**{f"{name}.{n}": (channels,) for n in names}, f"{name}.num_batches_tracked": ()}


def weight_and_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


LENET5: Shapes = {
    **weight_and_bias("conv1", 20, 1, 5, 5),
    **batch_norm("bn_conv1", 20, affine=False),
    **batch_norm("bin_conv2.bn", 20),
    **weight_and_bias("bin_conv2.conv", 50, 20, 5, 5),
    **batch_norm("bin_ip1.bn", 50),
    **weight_and_bias("bin_ip1.linear", 500, 800),
    **weight_and_bias("ip2", 10, 500),
}
NIN_: Shapes = {
    **weight_and_bias("xnor.0", 192, 3, 5, 5),
    **batch_norm("xnor.1", 192, affine=False),
    **batch_norm("xnor.3.bn", 192),
    **weight_and_bias("xnor.3.conv", 160, 192, 1, 1),
    **batch_norm("xnor.4.bn", 160),
    **weight_and_bias("xnor.4.conv", 96, 160, 1, 1),
    **batch_norm("xnor.6.bn", 96),
    **weight_and_bias("xnor.6.conv", 192, 96, 5, 5),
    **batch_norm("xnor.7.bn", 192),
    **weight_and_bias("xnor.7.conv", 192, 192, 1, 1),
    **batch_norm("xnor.8.bn", 192),
    **weight_and_bias("xnor.8.conv", 192, 192, 1, 1),
    **batch_norm("xnor.10.bn", 192),
    **weight_and_bias("xnor.10.conv", 192, 192, 3, 3),
    **batch_norm("xnor.11.bn", 192),
    **weight_and_bias("xnor.11.conv", 192, 192, 1, 1),
    **batch_norm("xnor.12", 192, affine=False),
    **weight_and_bias("xnor.13", 10, 192, 1, 1),
}


def alexnet(first_norm: int) -> Shapes:
    return {
        **weight_and_bias("features.0", 96, 3, 11, 11),
        **batch_norm("features.1", 96),
        **batch_norm("features.4.bn", 96),
        **weight_and_bias("features.4.conv", 256, 96, 5, 5),
        **batch_norm("features.6.bn", 256),
        **weight_and_bias("features.6.conv", 384, 256, 3, 3),
        **batch_norm("features.7.bn", 384),
        **weight_and_bias("features.7.conv", 384, 384, 3, 3),
        **batch_norm("features.8.bn", 384),
        **weight_and_bias("features.8.conv", 256, 384, 3, 3),
        **batch_norm("classifier.0.bn", first_norm),
        **weight_and_bias("classifier.0.linear", 4096, 9216),
        **batch_norm("classifier.1.bn", 4096),
        **weight_and_bias("classifier.1.linear", 4096, 4096),
        **batch_norm("classifier.2", 4096),
        **weight_and_bias("classifier.4", 1000, 4096),
    }


# name: how to make it, its keys, the keys that are binarised, the number of parameters
NETWORKS: dict[str, tuple[Callable[[], RecipeNetwork], Shapes, list[str], int]] = {
    "lenet5": (
        LeNet5,
        LENET5,
        ["bin_conv2.conv", "bin_ip1.linear"],
        (20 * 25 + 20) + (2 * 20 + 50 * 20 * 25 + 50) + (2 * 50 + 500 * 800 + 500) + (10 * 500 + 10),
    ),
    "nin": (
        NIN,
        NIN_,
        [f"xnor.{i}.conv" for i in (3, 4, 6, 7, 8, 10, 11)],
        (192 * 75 + 192)
        + (2 * 192 + 160 * 192 + 160)
        + (2 * 160 + 96 * 160 + 96)
        + (2 * 96 + 192 * 96 * 25 + 192)
        + 3 * (2 * 192 + 192 * 192 + 192)
        + (2 * 192 + 192 * 192 * 9 + 192)
        + (10 * 192 + 10),
    ),
    **{
        name: (
            lambda channels=channels: AlexNet(channels),
            alexnet(first_norm),
            [*[f"features.{i}.conv" for i in (4, 6, 7, 8)], *[f"classifier.{i}.linear" for i in (0, 1)]],
            (96 * 3 * 121 + 96 + 2 * 96)
            + (2 * 96 + 256 * 96 * 25 + 256)
            + (2 * 256 + 384 * 256 * 9 + 384)
            + (2 * 384 + 384 * 384 * 9 + 384)
            + (2 * 384 + 256 * 384 * 9 + 256)
            + (2 * first_norm + 4096 * 9216 + 4096)
            + (2 * 4096 + 4096 * 4096 + 4096)
            + (2 * 4096 + 1000 * 4096 + 1000),
        )
        for name, channels, first_norm in [("alexnet-flat", None, 9216), ("alexnet-channels", 256, 256)]
    },
}
each_network = pytest.mark.parametrize("name", NETWORKS)
CLASSES = {"lenet5": 10, "nin": 10, "alexnet-flat": 1000, "alexnet-channels": 1000}


def abstract(name: str) -> RecipeNetwork:
    """The network without memory behind its tensors: enough for names, shapes and graphs."""
    with torch.device("meta"):
        return NETWORKS[name][0]().eval()


@cache
def state(name: str) -> State:
    """A checkpoint with the hand-written keys: gammas of either sign, statistics calibrated so that no layer is blind.

    The weights are small, and so the variances: then eps matters.
    """
    generator = torch.Generator().manual_seed(7)
    made: State = Calibrating()
    for key, shape in NETWORKS[name][1].items():
        random = torch.rand(shape, generator=generator)
        if key.endswith("num_batches_tracked"):
            made[key] = torch.tensor(5)
        else:
            made[key] = (random - 0.5) * 0.03 if len(shape) > 1 else (random - 0.3) * 0.03
    with torch.no_grad():
        BY_HAND[name](made, torch.randn(4, *abstract(name).input_shape, generator=generator))
    return dict(made)


@cache
def loaded(name: str) -> RecipeNetwork:
    model = abstract(name).to_empty(device="cpu")  # without the cost of initialising 60 million weights
    model.load_state_dict(state(name), strict=True)
    return model.eval()


# --- keys, shapes, sizes ----------------------------------------------------------------------------------------


@each_network
def test_state_dict_keys_and_shapes(name: str) -> None:
    assert {key: tuple(value.shape) for key, value in abstract(name).state_dict().items()} == NETWORKS[name][1]


@each_network
def test_number_of_parameters(name: str) -> None:
    model, expected = abstract(name), NETWORKS[name][3]
    assert sum(p.numel() for p in model.parameters()) == expected
    assert sum(torch.Size(s).numel() for k, s in NETWORKS[name][1].items() if "running" not in k and s) == expected


@each_network
def test_checkpoint_loads_strictly(name: str) -> None:
    model = loaded(name)
    for key, value in model.state_dict().items():
        expected = state(name)[key]
        gamma = key.endswith("weight") and value.dim() == 1
        assert torch.equal(value, expected.clamp(min=0.01) if gamma else expected), key


def test_a_wrong_key_does_not_load() -> None:
    wrong = dict(state("lenet5"))
    wrong["bin_ip1.conv.weight"] = wrong.pop("bin_ip1.linear.weight")
    with pytest.raises(RuntimeError, match=r"bin_ip1\.linear\.weight"):
        LeNet5().load_state_dict(wrong)


def test_checkpoint_of_2017_without_batch_counters_loads_strictly() -> None:
    old = {key: value for key, value in state("nin").items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state("nin"))
    NIN().load_state_dict(old, strict=True)


def test_names() -> None:
    assert list(ARCHITECTURES.items()) == [
        ("lenet5", LeNet5),
        ("nin", NIN),
        ("alexnet", AlexNet),
        ("birealnet18", BiRealNet18),
        ("xnor-alexnet", XnorAlexNet),
        ("binarynet-vgg", BinaryNetVGG),
        ("binarynet-mlp", BinaryNetMLP),
        ("reactnet", ReActNet),
        ("dorefa-vgg", DoReFaVGG),
    ]


@pytest.mark.parametrize("name", ["lenet5", "nin"])
def test_one_variant_fits_every_state_dict(name: str) -> None:
    assert type(ARCHITECTURES[name].for_state_dict(state(name))) is ARCHITECTURES[name]


@pytest.mark.parametrize(("name", "norm"), [("alexnet-flat", nn.BatchNorm1d), ("alexnet-channels", nn.BatchNorm2d)])
def test_alexnet_variant_is_told_by_the_first_classifier_norm(name: str, norm: type[nn.Module]) -> None:
    shapes = NETWORKS[name][1]
    with torch.device("meta"):
        model = AlexNet.for_state_dict({key: torch.empty(shape) for key, shape in shapes.items()})
    assert type(model.classifier[0].bn) is norm
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == shapes


def test_alexnet_variant_without_the_key_is_the_flat_one() -> None:
    with torch.device("meta"):
        assert AlexNet.for_state_dict({}).flatten_first


# --- what they compute ------------------------------------------------------------------------------------------


class Calibrating(dict[str, Tensor]):
    """A state dict whose BatchNorm statistics are set from the batch that passes."""


def norm(s: State, name: str, x: Tensor, eps: float = 1e-4) -> Tensor:
    if isinstance(s, Calibrating):
        dims = [0, *range(2, x.dim())]
        s[f"{name}.running_mean"], s[f"{name}.running_var"] = x.mean(dims), x.var(dims, unbiased=False)
    gamma = s[f"{name}.weight"].clamp(min=0.01) if f"{name}.weight" in s else None
    return F.batch_norm(
        x, s[f"{name}.running_mean"], s[f"{name}.running_var"], gamma, s.get(f"{name}.bias"), False, 0.0, eps
    )


def conv(s: State, name: str, x: Tensor, pad: int = 0, stride: int = 1) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride, pad)


def linear(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x.flatten(1), s[f"{name}.weight"], s[f"{name}.bias"])


def block(s: State, name: str, x: Tensor, pad: int = 0) -> Tensor:
    x = norm(s, f"{name}.bn", x).sign()
    return (linear(s, f"{name}.linear", x) if f"{name}.linear.weight" in s else conv(s, f"{name}.conv", x, pad)).relu()


def lenet5_by_hand(s: State, x: Tensor) -> Tensor:
    x = F.max_pool2d(norm(s, "bn_conv1", conv(s, "conv1", x)).relu(), 2, 2)
    x = F.max_pool2d(block(s, "bin_conv2", x), 2, 2)
    return linear(s, "ip2", block(s, "bin_ip1", x))


def nin_by_hand(s: State, x: Tensor) -> Tensor:
    x = norm(s, "xnor.1", conv(s, "xnor.0", x, 2)).relu()
    x = F.max_pool2d(block(s, "xnor.4", block(s, "xnor.3", x)), 3, 2, 1)
    x = block(s, "xnor.8", block(s, "xnor.7", block(s, "xnor.6", x, 2)))
    x = F.avg_pool2d(x, 3, 2, 1)
    x = norm(s, "xnor.12", block(s, "xnor.11", block(s, "xnor.10", x, 1)))
    return F.avg_pool2d(conv(s, "xnor.13", x).relu(), 8).view(-1, 10)


def alexnet_by_hand(s: State, x: Tensor) -> Tensor:
    x = F.max_pool2d(norm(s, "features.1", conv(s, "features.0", x, stride=4)).relu(), 3, 2)
    x = F.max_pool2d(block(s, "features.4", x, 2), 3, 2)
    for i in (6, 7, 8):
        x = block(s, f"features.{i}", x, 1)
    x = F.max_pool2d(x, 3, 2)
    x = block(s, "classifier.0", x.flatten(1) if len(s["classifier.0.bn.bias"]) == 9216 else x)
    return linear(s, "classifier.4", norm(s, "classifier.2", block(s, "classifier.1", x), 1e-3))


BY_HAND = {
    "lenet5": lenet5_by_hand,
    "nin": nin_by_hand,
    "alexnet-flat": alexnet_by_hand,
    "alexnet-channels": alexnet_by_hand,
}


@each_network
@torch.no_grad()
def test_forward_pass_equals_the_one_written_by_hand(name: str) -> None:
    model = loaded(name)
    x = torch.randn(2, *model.input_shape)
    logits = model(x)
    assert logits.shape == (2, CLASSES[name])
    expected = BY_HAND[name](state(name), x)
    assert logits.std() > 1e-3  # not blind
    assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    for key in [key for key in state(name) if key.endswith(("running_var", "bn.bias"))]:  # each norm's eps has effect
        moved = {**state(name), key: state(name)[key] + 9e-4}  # what an eps of 1e-3 would do, or a moved threshold
        assert not torch.allclose(logits, BY_HAND[name](moved, x), rtol=1e-4, atol=1e-5), key


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    conv_block, linear_block = BinConv2d(4, 3, 1, dropout=0.5), BinLinear(64, 3, dropout=0.5)
    assert (NIN().xnor[6].dropout.p, NIN().xnor[10].dropout.p, NIN().xnor[7].dropout.p) == (0.5, 0.5, 0.0)
    for module, x in [(conv_block, torch.randn(2, 4, 9, 9)), (linear_block, torch.randn(2, 64))]:
        module.eval()
        assert torch.equal(module(x), module(x))
        module.train()
        assert not torch.equal(module(x), module(x))


def test_network_without_a_body_says_so() -> None:
    class Empty(RecipeNetwork):
        pass

    with pytest.raises(TypeError, match=r"Empty does not define body\(\)"):
        Empty()(torch.zeros(1))


# --- the clamp of gamma -----------------------------------------------------------------------------------------


def gammas(model: nn.Module) -> Tensor:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    return torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, norms) and m.weight is not None])


def spoil(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d) and m.weight is not None:
            m.weight.data[0], m.weight.data[1] = -0.5, 0.001


def test_gamma_is_clamped_after_loading() -> None:
    assert (state("nin")["xnor.3.bn.weight"] < 0).any()
    assert gammas(loaded("nin")).min() == pytest.approx(0.01)
    plain = nn.Module()
    plain.xnor = NIN().xnor  # the same layers without the network's clamp
    plain.load_state_dict(state("nin"))
    assert gammas(plain).min() < 0


def test_gamma_is_clamped_in_every_training_step() -> None:
    model = LeNet5().train()
    spoil(model)
    assert gammas(model).min() == -0.5
    model(torch.randn(2, 1, 28, 28))
    assert gammas(model).min() == pytest.approx(0.01)


def test_gamma_is_clamped_when_training_ends() -> None:
    # The last optimiser step comes after the last clamp, and the recipe's own test pass clamps.
    model = LeNet5().train()
    model(torch.randn(2, 1, 28, 28))
    spoil(model)  # as an optimiser step may
    model.eval()
    assert gammas(model).min() == pytest.approx(0.01)


def test_clamp_leaves_larger_gammas_and_other_weights() -> None:
    model = LeNet5()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    clamp_gamma(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- which weights are binary -----------------------------------------------------------------------------------


def sign_fed(model: RecipeNetwork) -> list[str]:
    """The layers of the exported graph whose input is a sign, looking through what only moves values."""
    program = torch.export.export(model.eval(), (torch.empty(2, *model.input_shape, device="meta"),))
    parameters = program.graph_signature.inputs_to_parameters
    found = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not any(layer in str(node.target) for layer in ("conv", "linear")):
            continue
        source, weight = node.args[:2]
        while any(move in str(source.target) for move in ("flatten", "view", "reshape", "dropout", "alias")):
            source = source.args[0]
        if "sign" in str(source.target):
            found.append(parameters[weight.name].removesuffix(".weight"))
    return found


@each_network
def test_binary_weights_are_those_whose_input_is_a_sign(name: str) -> None:
    model, expected = abstract(name), NETWORKS[name][2]
    by_id = {id(parameter): key for key, parameter in model.named_parameters()}
    assert [by_id[id(w)].removesuffix(".weight") for w in model.binary_weights()] == expected
    assert sign_fed(model) == expected


@each_network
def test_binary_weights_are_all_but_the_first_and_the_last_layer(name: str) -> None:
    model = abstract(name)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    binary = model.binary_weights()
    assert [id(w) for w in binary] == [id(m.weight) for m in layers[1:-1]]
    assert len(binary) == {"lenet5": 2, "nin": 7}.get(name, 6)


def test_the_sign_check_catches_a_binary_layer_that_is_not_listed() -> None:
    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(x)

    model = abstract("lenet5")
    assert isinstance(model, LeNet5)
    model.ip2 = nn.Sequential(Sign(), model.ip2)  # type: ignore[assignment]
    assert sign_fed(model) == ["bin_conv2.conv", "bin_ip1.linear", "ip2.1"]
    assert len(model.binary_weights()) == 2
