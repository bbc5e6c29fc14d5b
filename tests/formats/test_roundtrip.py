"""What is saved comes back, into every kind of model that `load` accepts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastcompress.formats import checkpoint_info, load, save
from fastcompress.nn import QuantConv2d, QuantLinear
from fastcompress.record import record_of
from tests.formats.models import (
    MANIFEST,
    Net,
    Snapshot,
    make_float,
    make_input,
    make_quantized,
    read_manifest,
    tensor_path,
)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def test_quantized_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = make_quantized()
    save(saved, tmp_path)
    given = make_float(seed=1)
    before = Snapshot(given)
    loaded = load(tmp_path, given)
    before.assert_unchanged(given)
    assert_same_state(saved, loaded)
    assert torch.equal(saved(make_input()), loaded(make_input()))
    assert type(loaded.conv) is QuantConv2d
    assert loaded.conv.padding4 == (1, 1, 0, 2)
    assert loaded.conv.activation == "relu"
    assert type(loaded.norm) is nn.Identity
    assert record_of(loaded) == record_of(saved)
    assert not loaded.training
    assert not loaded.conv.training


def test_directory_holds_two_files_that_others_can_read(tmp_path: Path) -> None:
    saved = make_quantized()
    save(saved, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, tensor_path(tmp_path).name]
    stored = load_file(tensor_path(tmp_path))
    state = saved.state_dict()
    assert stored.keys() == state.keys() - {"out.weight"}  # tied to embed.weight, stored once
    assert all(torch.equal(stored[name], state[name]) for name in stored)
    assert read_manifest(tmp_path)["tensor_aliases"] == {"out.weight": "embed.weight"}


def test_inplace_converts_the_model_given(tmp_path: Path) -> None:
    saved = make_quantized()
    save(saved, tmp_path)
    given = make_float(seed=1)
    assert load(tmp_path, given, inplace=True) is given
    assert_same_state(saved, given)


def test_copy_shares_no_tensor_with_the_model_given(tmp_path: Path) -> None:
    save(make_quantized(), tmp_path)
    given = make_float(seed=1)
    loaded = load(tmp_path, given)
    pointers = {t.data_ptr() for t in (*given.parameters(), *given.buffers())}
    assert not any(t.data_ptr() in pointers for t in (*loaded.parameters(), *loaded.buffers()))


def test_loads_into_an_already_quantized_model(tmp_path: Path) -> None:
    saved = make_quantized()
    save(saved, tmp_path)
    assert_same_state(saved, load(tmp_path, make_quantized(seed=7)))


def test_float_checkpoint_turns_a_quantized_model_back(tmp_path: Path) -> None:
    saved = make_float()
    save(saved, tmp_path)
    given = make_float(1)
    given.hidden = QuantLinear.from_float(given.hidden, input_mode="dynamic")
    loaded = load(tmp_path, given)
    assert type(loaded.hidden) is nn.Linear
    assert_same_state(saved, loaded)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    save(make_quantized(), tmp_path)
    loaded = load(tmp_path, make_float(1))
    assert loaded.out.weight is loaded.embed.weight


def test_weights_tied_only_in_the_file_are_tied_after_loading(tmp_path: Path) -> None:
    save(make_quantized(), tmp_path)
    untied = make_float(1)
    untied.out.weight = nn.Parameter(torch.zeros(6, 5))
    loaded = load(tmp_path, untied)
    assert loaded.out.weight is loaded.embed.weight


def test_shared_quantized_layer_stays_one_object(tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.ReLU(), layer)

    saved = make()
    saved[0] = saved[2] = QuantLinear.from_float(saved[0], input_mode="dynamic")
    save(saved, tmp_path)
    assert read_manifest(tmp_path)["module_aliases"] == {"2": "0"}
    loaded = load(tmp_path, make())
    assert loaded[0] is loaded[2]
    x = torch.rand(3, 4)
    assert torch.equal(saved(x), loaded(x))


def test_activation_shared_by_two_names_may_be_fused_at_one_of_them(tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        relu = nn.ReLU()
        return nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)

    saved = make()
    saved[0] = QuantLinear.from_float(saved[0], input_mode="dynamic", activation="relu")
    saved[1] = nn.Identity()
    save(saved, tmp_path)
    loaded = load(tmp_path, make())
    assert type(loaded[1]) is nn.Identity
    assert type(loaded[3]) is nn.ReLU
    x = torch.rand(3, 4)
    assert torch.equal(saved(x), loaded(x))


class SamePadConv2d(nn.Conv2d):
    """A subclass with a forward and a child of its own, as EfficientNet has them."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args, bias=False)
        self.stride = [2, 2]
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


@pytest.mark.parametrize("quantized", [True, False])
def test_adapted_subclass_is_replaced(tmp_path: Path, quantized: bool) -> None:
    plain = nn.Conv2d(3, 4, 3, 2, padding=1)  # a folded BatchNorm gave it a bias
    new = QuantConv2d.from_float(plain, input_scale=0.01, padding=(0, 1, 0, 1)) if quantized else plain
    saved = nn.Sequential(new)
    save(saved, tmp_path)
    loaded = load(tmp_path, nn.Sequential(SamePadConv2d(3, 4, 3)))
    assert type(loaded[0]) is type(new)
    assert torch.equal(saved(make_input()), loaded(make_input()))


def test_subclass_that_stays_gets_the_folded_bias(tmp_path: Path) -> None:
    saved = nn.Sequential(SamePadConv2d(3, 4, 3), nn.Identity())
    saved[0].bias = nn.Parameter(torch.arange(4.0))
    save(saved, tmp_path)
    loaded = load(tmp_path, nn.Sequential(SamePadConv2d(3, 4, 3), nn.ReLU()))
    assert type(loaded[0]) is SamePadConv2d
    assert torch.equal(saved(make_input()), loaded(make_input()))


def test_constructor_on_the_meta_device(tmp_path: Path) -> None:
    layers = lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))  # noqa: E731
    saved = layers()
    saved[2] = QuantLinear.from_float(saved[2], input_mode="dynamic_symmetric")
    save(saved, tmp_path)
    with torch.device("meta"):
        given = layers()
    loaded = load(tmp_path, given)
    assert torch.equal(saved(torch.ones(1, 4)), loaded(torch.ones(1, 4)))
    assert given[0].weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_file_decides_the_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = make_quantized().to(dtype)
    save(saved, tmp_path)
    loaded = load(tmp_path, make_float())
    assert loaded.embed.weight.dtype == dtype
    assert loaded.hidden.weight.dtype == dtype
    assert_same_state(saved, loaded)


def test_every_dtype_and_shape_of_buffer(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int16, torch.uint8, torch.bool]

    def make(fill: int) -> nn.Module:
        module = nn.Module()
        for index, dtype in enumerate(dtypes):
            module.register_buffer(f"b{index}", torch.full((3, 2), fill).to(dtype))
        module.register_buffer("empty", torch.full((0, 5), fill))
        module.register_buffer("scalar", torch.tensor(fill))
        module.register_buffer("view", torch.full((4, 6), float(fill)).t()[1:, ::2])
        return module

    saved = make(1)
    save(saved, tmp_path)
    loaded = load(tmp_path, make(0))
    for name, tensor in saved.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found.double(), tensor.double()), name


def test_root_may_be_the_quantized_layer(tmp_path: Path) -> None:
    saved = QuantLinear.from_float(nn.Linear(3, 2), input_mode="dynamic")
    save(saved, tmp_path)
    loaded = load(tmp_path, nn.Linear(3, 2))
    assert torch.equal(saved(torch.ones(1, 3)), loaded(torch.ones(1, 3)))


def test_trainability_is_the_models(tmp_path: Path) -> None:
    save(make_float(), tmp_path)
    given = make_float()
    given.embed.weight.requires_grad_(False)
    loaded = load(tmp_path, given)
    assert not loaded.embed.weight.requires_grad
    assert loaded.hidden.weight.requires_grad


def test_a_model_without_tensors(tmp_path: Path) -> None:
    save(nn.Sequential(nn.ReLU()), tmp_path)
    assert type(load(tmp_path, nn.Sequential(nn.ReLU()))[0]) is nn.ReLU


def test_record_survives_and_nothing_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fastcompress as fc

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    timer = lambda calls: {name: {"dense": 2.0, "int8": 1.0}[name] for name in calls}  # noqa: E731
    quantized = fc.quantize(model, "W8A8-dynamic", [torch.rand(4, 8)], timer=timer, progress=False)
    save(quantized, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("load must not measure")

    monkeypatch.setattr("fastcompress.api.compare", refuse)
    loaded = load(tmp_path, copy.deepcopy(model))
    assert record_of(loaded) == record_of(quantized)
    assert record_of(loaded)["0"].speedup == 2.0
    x = torch.rand(5, 8)
    assert torch.equal(quantized(x), loaded(x))


def test_checkpoint_info_needs_no_model(tmp_path: Path) -> None:
    save(make_quantized(), tmp_path)
    info = checkpoint_info(tmp_path)
    assert info["modules"] == {"QuantConv2d": 1, "Identity": 2, "QuantLinear": 1, "Linear": 1}
    assert info["layers"] == {"quantized": 1}
    assert info["tensors"] == len(load_file(tensor_path(tmp_path)))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    save(make_quantized(), tmp_path / "a")
    save(load(tmp_path / "a", Net()), tmp_path / "b")
    for name in (MANIFEST, tensor_path(tmp_path / "a").name):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
