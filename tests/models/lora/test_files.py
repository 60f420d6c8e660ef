"""Adapter files: ours and other programs', onto models and from one format to another."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.layered import MATRIX_TYPES, TYPES, Layered, defined_model, defined_weight, factors_of, layered, trained
from torch import Tensor, nn

from stable_audio_tools.core.errors import CheckpointError, ConfigError
from stable_audio_tools.models.lora import (
    LoraConfig,
    LoraFormat,
    attach_lora,
    attached_loras,
    convert_lora,
    describe_lora,
    fill_lora,
    load_lora,
    merge_lora,
    read_lora,
    save_lora,
    unload_lora,
    unmerge_lora,
    write_lora,
)
from stable_audio_tools.version import __version__

RANK = 3


class Transformer(nn.Module):
    """(b, 6) -> (b, 6), by the names that other programs' files have."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(6, 8, bias=False)
        self.to_out = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_out(self.to_qkv(x))
        return out


class Wrapper(nn.Module):
    """`model.model.transformer...` and `conditioner.conditioners...`, as in a conditional diffusion model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"model": nn.ModuleDict({"transformer": Transformer()})})
        self.conditioner = nn.ModuleDict({"conditioners": nn.ModuleDict({"seconds": nn.Linear(6, 6)})})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model["model"]["transformer"](self.conditioner["conditioners"]["seconds"](x))
        return out


BACKBONE = "model.model.transformer."
SECONDS = "conditioner.conditioners.seconds"


def wrapped() -> tuple[Wrapper, Tensor]:
    torch.manual_seed(0)
    return Wrapper(), torch.randn(4, 6)


def expected_output(kind: str, factors: dict[str, dict[str, Tensor]], scale: float, scale_bias: bool = False) -> Tensor:
    """Of the wrapper with W' written into the layers."""
    model, x = wrapped()
    for path, held in factors.items():
        layer = model.get_submodule(path)
        if scale_bias and kind == "dora-rows" and layer.bias is not None:
            norms = (layer.weight.detach() + scale * held["lora_B"] @ held["lora_A"]).norm(dim=1)
            layer.bias.data *= held["magnitude"] / norms
        layer.weight.data = defined_weight(kind, layer.weight.detach(), held, scale)
    out: Tensor = model(x)
    return out


def random_factors(kind: str, paths: list[str]) -> dict[str, dict[str, Tensor]]:
    model, _ = wrapped()
    made: dict[str, dict[str, Tensor]] = {}
    for path in paths:
        rows, cols = model.get_submodule(path).weight.shape
        if kind.endswith("-xs"):
            made[path] = {"M_xs": torch.randn(RANK, RANK)}
        else:
            made[path] = {"lora_A": torch.randn(RANK, cols), "lora_B": torch.randn(rows, RANK)}
        sizes = {"dora-rows": {"magnitude": rows}, "dora-cols": {"magnitude": cols}}
        sizes["bora"] = {"magnitude_r": rows, "magnitude_c": cols}
        for name, size in sizes.get(kind.removesuffix("-xs"), {}).items():
            made[path][name] = torch.rand(size) + 0.5
    return made


PATHS = [f"{BACKBONE}to_qkv", f"{BACKBONE}to_out", SECONDS]


@pytest.mark.parametrize("kind", TYPES)
def test_saved_and_loaded_is_the_same(kind: str, tmp_path: Path) -> None:
    model, x = layered(torch.float32)
    adapter = trained(model, kind)
    live = model(x)
    save_lora(adapter, tmp_path / "a.safetensors", model=model, metadata={"trigger": "my voice", "step": 7})
    other, _ = layered(torch.float32)
    loaded = load_lora(other, tmp_path / "a.safetensors")
    assert torch.equal(other(x), live)
    assert loaded.name == "a"
    assert (loaded.facts["trigger"], loaded.facts["step"], loaded.facts["version"]) == ("my voice", 7, __version__)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config == adapter.config


def test_the_header_says_what_the_file_is(tmp_path: Path) -> None:
    model, _ = layered(torch.float32)
    adapter = trained(model, "dora-cols", ranks={"mix": 2})
    path = save_lora(adapter, tmp_path / "a.safetensors", torch.float16, {"base_name": "tiny", "step": 9}, model=model)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["lora"])
        theirs = json.loads(file.metadata()["lora_config"])
        assert file.get_tensor("widen.lora_A").dtype == torch.float16
    assert header["config"] == {"adapter_type": "dora-cols", "rank": 3, "alpha": 6.0, "ranks": {"mix": 2}}
    assert header["targets"] == list(adapter.targets)
    assert (header["base_name"], header["step"], header["version"]) == ("tiny", 9, __version__)
    assert set(header["base_hashes"]) == {"float32", "bfloat16", "float16"}
    assert (theirs["adapter_type"], theirs["rank"], theirs["alpha"]) == ("dora-cols", 3, 6.0)
    text = describe_lora(path)
    assert text.startswith(
        "a.safetensors: an adapter of type dora-cols in this package's format\nrank 3, 2 at 'mix', alpha 6"
    )
    assert "base name: tiny" in text


@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_loraw_files_load_and_give_the_formulas_output(kind: str, tmp_path: Path) -> None:
    factors = random_factors(kind, PATHS[:2])
    state = {}
    for path, held in factors.items():
        root = path.replace(".", "/")
        state[f"{root}/lora_down.weight"], state[f"{root}/lora_up.weight"] = held["lora_A"], held["lora_B"]
        if kind == "dora-rows":
            state[f"{root}/dora_mag.weight"] = held["magnitude"][:, None]
            state[f"{root}/dora_mag.bias"] = torch.randn(len(held["magnitude"]))  # LoRAW's, without effect
    torch.save(state, tmp_path / "loraw.ckpt")
    model, x = wrapped()
    load_lora(model, tmp_path / "loraw.ckpt", alpha=6.0)
    live = model(x)
    torch.testing.assert_close(live, expected_output(kind, factors, 2.0, scale_bias=True))
    if kind == "dora-rows":
        assert (live - expected_output(kind, factors, 2.0)).abs().max() > 1e-3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge_lora(model)
    torch.testing.assert_close(model(x), live)
    unmerge_lora(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_without_alpha_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    factors = random_factors("lora", PATHS[:1])
    names = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}
    state = {f"{p.replace('.', '/')}/{names[n]}": t for p, held in factors.items() for n, t in held.items()}
    torch.save(state, tmp_path / "loraw.ckpt")
    model, x = wrapped()
    load_lora(model, tmp_path / "loraw.ckpt")
    assert "loraw.ckpt holds no alpha; its rank, 3, is used" in caplog.text
    torch.testing.assert_close(model(x), expected_output("lora", factors, 1.0))
    assert "alpha not in the file, taken as 3" in describe_lora(tmp_path / "loraw.ckpt")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", MATRIX_TYPES)
def test_stable_audio_3_files_load_and_give_the_formulas_output(kind: str, suffix: str, tmp_path: Path) -> None:
    factors = random_factors(kind, PATHS)
    config = {"rank": RANK, "alpha": 6, "adapter_type": kind, "dropout": 0.0, "include": None, "exclude": None}
    below = {
        PATHS[0]: "model.transformer.to_qkv",
        PATHS[1]: "model.transformer.to_out",
        SECONDS: "conditioners.seconds",
    }
    state = {f"{below[p]}.parametrizations.weight.0.{n}": t for p, held in factors.items() for n, t in held.items()}
    path = tmp_path / f"sa3{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": state, "lora_config": config}, path)
    else:
        save_file(state, path, {"lora_config": json.dumps(config)})
    model, x = wrapped()
    load_lora(model, path)
    torch.testing.assert_close(model(x), expected_output(kind, factors, 2.0), rtol=1e-4, atol=1e-5)


def test_dora_of_early_files_is_told_by_the_shape_of_its_magnitudes(tmp_path: Path) -> None:
    factors = random_factors("dora-cols", PATHS[:1])
    held = factors[PATHS[0]]
    root = "model.transformer.to_qkv.parametrizations.weight.0"
    state = {f"{root}.{name}": tensor for name, tensor in held.items()} | {
        f"{root}.magnitude": held["magnitude"][None],
        f"{root}.lora_dropout_mask": torch.ones(1, 6),
    }
    save_file(state, tmp_path / "old.safetensors", {"lora_config": json.dumps({"rank": 3, "adapter_type": "dora"})})
    model, x = wrapped()
    assert load_lora(model, tmp_path / "old.safetensors").config.adapter_type == "dora-cols"
    torch.testing.assert_close(model(x), expected_output("dora-cols", factors, 1.0))


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
def test_comfyui_names_load_and_give_the_formulas_output(kind: str, dotted: bool, tmp_path: Path) -> None:
    factors = random_factors(kind, PATHS[:2])
    state: dict[str, Tensor] = {}
    for index, (path, held) in enumerate(factors.items()):
        below = path.removeprefix("model.model.")
        root = f"diffusion_model.{below}" if dotted else f"lora_unet_{below.replace('.', '_')}"
        alpha = (6.0, 12.0)[index]  # each layer says its own
        state |= {f"{root}.lora_down.weight": held["lora_A"], f"{root}.lora_up.weight": held["lora_B"]}
        state[f"{root}.alpha"] = torch.tensor(alpha)
        held["lora_B"] = held["lora_B"] * alpha / RANK
        if kind == "dora-rows":
            state[f"{root}.dora_scale"] = held["magnitude"][:, None].clone()
    save_file(state, tmp_path / "comfy.safetensors")
    model, x = wrapped()
    load_lora(model, tmp_path / "comfy.safetensors")
    torch.testing.assert_close(model(x), expected_output(kind, factors, 1.0))


@pytest.mark.parametrize("kind", ["lora", "dora-rows"])
@pytest.mark.parametrize("target", ["loraw", "sa3", "comfyui"])
def test_conversions_go_round(target: LoraFormat, kind: str, tmp_path: Path) -> None:
    model, x = wrapped()
    scale_bias = target == "loraw" and kind == "dora-rows"
    adapter = trained(model, kind, include=[BACKBONE.rstrip(".")], scale_bias=scale_bias)
    live = model(x)
    ours = save_lora(adapter, tmp_path / "ours.safetensors", model=model)
    theirs = tmp_path / ("theirs.ckpt" if target == "loraw" else "theirs.safetensors")
    write_lora(convert_lora(read_lora(ours), target), theirs)
    assert read_lora(theirs).format == target
    other, _ = wrapped()
    load_lora(other, theirs)
    torch.testing.assert_close(other(x), live)
    bare, _ = wrapped()
    back = convert_lora(read_lora(theirs), "native", bare if target == "comfyui" else None)
    write_lora(back, tmp_path / "back.safetensors")
    load_lora(bare, tmp_path / "back.safetensors")
    torch.testing.assert_close(bare(x), live)


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_files_of_lycoris_load_and_give_the_formulas_output(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = wrapped()
    factors, state = {}, {}
    for path in PATHS[:2]:
        rows, cols = model.get_submodule(path).weight.shape
        if kind == "loha":
            shapes = {"hada_w1_a": (rows, 2), "hada_w1_b": (2, cols), "hada_w2_a": (rows, 2), "hada_w2_b": (2, cols)}
        elif path == PATHS[0]:
            shapes = {"lokr_w1": (2, 2), "lokr_w2_a": (rows // 2, 2), "lokr_w2_b": (2, cols // 2)}
        else:
            shapes = {"lokr_w1": (2, 2), "lokr_w2": (rows // 2, cols // 2)}
        held = {name: torch.randn(shape) for name, shape in shapes.items()}
        root = f"lora_unet_{path.removeprefix('model.model.').replace('.', '_')}"
        state |= {f"{root}.{name}": tensor for name, tensor in held.items()} | {f"{root}.alpha": torch.tensor(4.0)}
        last = next(name for name in ("hada_w2_a", "lokr_w2", "lokr_w2_a") if name in held)
        # Of rank 2 the scale is alpha / rank; a second factor of full rank is not scaled.
        factors[path] = {**held, last: held[last] * (1.0 if last == "lokr_w2" else 2.0)}
    save_file(state, tmp_path / "lycoris.safetensors")
    load_lora(model, tmp_path / "lycoris.safetensors")
    expected = expected_output(kind, factors, 1.0)
    torch.testing.assert_close(model(x), expected)
    bare, _ = wrapped()
    write_lora(convert_lora(read_lora(tmp_path / "lycoris.safetensors"), "native", bare), tmp_path / "ours.safetensors")
    write_lora(convert_lora(read_lora(tmp_path / "ours.safetensors"), "comfyui"), tmp_path / "back.safetensors")
    load_lora(bare, tmp_path / "back.safetensors")
    torch.testing.assert_close(bare(x), expected)


def test_other_programs_lack_some_types(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = wrapped()
    loha = read_lora(save_lora(trained(model, "loha"), tmp_path / "loha.safetensors"))
    with pytest.raises(CheckpointError, match="Stable Audio 3 has no adapters of type loha"):
        write_lora(convert_lora(loha, "sa3"), tmp_path / "x.safetensors")
    unload_lora(model)
    dora = read_lora(save_lora(trained(model, "dora-rows"), tmp_path / "dora.safetensors"))
    write_lora(convert_lora(dora, "loraw"), tmp_path / "x.ckpt")
    assert "LoRAW scales the biases of layers by the magnitudes, and this adapter does not" in caplog.text


def test_conversions_that_cannot_be(tmp_path: Path) -> None:
    model, _ = wrapped()
    bora = read_lora(save_lora(trained(model, "bora"), tmp_path / "bora.safetensors"))
    with pytest.raises(CheckpointError, match="LoRAW has no adapters of type bora, only lora and dora-rows"):
        write_lora(convert_lora(bora, "loraw"), tmp_path / "x.ckpt")
    unload_lora(model)
    whole = read_lora(save_lora(trained(model, "lora"), tmp_path / "lora.safetensors"))
    with pytest.raises(
        CheckpointError, match=r"layers of the transformer alone, and this adapter has conditioner\..* and 0 more"
    ):
        write_lora(convert_lora(whole, "comfyui"), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"unknown suffix '.bin'; adapters are .safetensors or .ckpt files"):
        write_lora(whole, tmp_path / "x.bin")
    unload_lora(model)
    inner = read_lora(save_lora(trained(model, "lora", exclude=["conditioner"]), tmp_path / "inner.safetensors"))
    write_lora(convert_lora(inner, "comfyui"), tmp_path / "comfy.safetensors")
    with pytest.raises(CheckpointError, match="do not show where a path is divided; give --model-config"):
        convert_lora(read_lora(tmp_path / "comfy.safetensors"), "native")
    assert not (tmp_path / "x.ckpt").exists()


def test_several_adapters_stack_under_names_of_their_own(tmp_path: Path) -> None:
    model, x = layered(torch.float32)
    path = save_lora(trained(model, "lora"), tmp_path / "voice.v1.safetensors")
    factors = factors_of(attached_loras(model)["lora"])
    unload_lora(model)
    base = model(x)
    load_lora(model, path, 0.25)
    load_lora(model, path, -0.5)
    load_lora(model, path, 1.0, name="third", layers=["widen"])
    assert list(attached_loras(model)) == ["voice_v1", "voice_v1_2", "third"]
    assert [adapter.strength for adapter in attached_loras(model).values()] == [0.25, -0.5, 1.0]
    only = {path: held if path == "widen" else {n: 0 * t for n, t in held.items()} for path, held in factors.items()}
    expected = defined_model(model, [("lora", 0.25, factors), ("lora", -0.5, factors), ("lora", 1.0, only)], 2.0)(x)
    torch.testing.assert_close(model(x), expected)
    unload_lora(model, "third")
    unload_lora(model)
    assert torch.equal(model(x), base)


def test_a_file_goes_on_training(tmp_path: Path) -> None:
    model, x = layered(torch.float32)
    path = save_lora(trained(model, "dora-rows"), tmp_path / "a.safetensors")
    live = model(x)
    other, _ = layered(torch.float32)
    adapter = load_lora(other, path, trainable=True)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    assert {id(p) for p in other.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters()}
    for alpha in (6.0, 1.5):
        third, _ = layered(torch.float32)
        fill_lora(attach_lora(third, LoraConfig(adapter_type="dora-rows", rank=3, alpha=alpha)), path)
        torch.testing.assert_close(third(x), live)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rank": 2}, r"grouped\.lora_A has shape \[3, 9\], and rank 2 needs \[2, 9\]; set rank to 3"),
        ({"rank": 3, "adapter_type": "bora"}, "an adapter of type lora, but one of type bora is to start from it"),
        (
            {"rank": 3, "include": ["mix"]},
            r"of the adapter's 1 layers it has 1, lacks 0 and has 4 others \(grouped\)",
        ),
    ],
)
def test_a_start_from_another_adapter_is_refused(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    model, _ = layered(torch.float32)
    path = save_lora(trained(model, "lora"), tmp_path / "a.safetensors")
    other, _ = layered(torch.float32)
    adapter = attach_lora(other, LoraConfig(**options))
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    with pytest.raises(CheckpointError, match=sentence):
        fill_lora(adapter, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())


def make_refused(what: str, folder: Path) -> Path:
    """A file that must not load onto `layered()`."""
    path = folder / f"{what}.safetensors"
    if what == "names":
        model, _ = wrapped()
        return save_lora(trained(model, "lora"), path)
    model = Layered()
    if what == "partly":
        return write_extra(save_lora(trained(model, "lora"), path), {"other.lora_A": (3, 4), "other.lora_B": (4, 3)})
    if what == "shapes":
        model.widen = nn.Linear(8, 13)
        return save_lora(trained(model, "lora"), path)
    if what == "rank":
        save_file({"widen.lora_A": torch.zeros(9, 8), "widen.lora_B": torch.zeros(12, 9)}, path)
        return path
    if what == "pair":
        save_file({"widen.lora_A": torch.zeros(2, 8), "widen.lora_B": torch.zeros(12, 3)}, path)
        return path
    if what == "half":
        save_file({"widen.lora_A": torch.zeros(2, 8)}, path)
        return path
    if what == "base":
        save_file({"widen.weight": torch.zeros(12, 8), "widen.bias": torch.zeros(12)}, path)
        return path
    if what == "cut":
        save_lora(trained(model, "lora"), path)
        path.write_bytes(path.read_bytes()[:-100])
        return path
    if what == "header":
        save_file({"widen.lora_A": torch.zeros(2, 8), "widen.lora_B": torch.zeros(12, 2)}, path, {"lora": "{oh"})
        return path
    if what == "type":
        section = json.dumps({"config": {"adapter_type": "oft", "rank": 2}})
        save_file({"widen.lora_A": torch.zeros(2, 8), "widen.lora_B": torch.zeros(12, 2)}, path, {"lora": section})
        return path
    path = path.with_suffix(".ckpt")
    if what == "code":
        torch.save({"state_dict": {"widen.lora_A": torch.zeros(2, 8)}, "lora": Harmful()}, path)
    if what == "pickle cut":
        torch.save({"widen/lora_down.weight": torch.zeros(2, 8)}, path)
        path.write_bytes(path.read_bytes()[:-60])
    return path


class Harmful:
    """Code that a naive reader would run."""

    ran = False

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('the file was run')",)


def write_extra(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    save_file(tensors | {name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (
            "names",
            r"another model: 0 of its 3 layers are matched, 3 unexpected \(.*\), 5 of this model's layers missing",
        ),
        (
            "partly",
            r"another model: 5 of its 6 layers are matched, 1 unexpected \(other\), 0 of this model's layers miss",
        ),
        ("shapes", r"4 of its 5 layers fit, 1 do not; widen\.lora_B has shape \[13, 3\], .* weight is 12 x 8"),
        ("rank", r"0 of its 1 layers fit, 1 do not; widen has rank 9, and the layer's weight is 12 x 8"),
        ("pair", r"the factors of widen do not fit each other \(lora_A \[2, 8\], lora_B \[12, 3\]\)"),
        ("half", r"widen holds lora_A, but an adapter of type lora has lora_A, lora_B"),
        ("base", r"not an adapter file: none of its 2 tensors has an adapter's name"),
        ("cut", "cut short or damaged|damaged or cut short"),
        ("header", "'lora' in its header is not JSON; the file is damaged"),
        ("type", r"its header cannot be used \(.*adapter_type: expected 'lora'.*got 'oft'"),
        ("code", "refused, and nothing in it was run"),
        ("pickle cut", "damaged or cut short"),
        ("absent", "no such file"),
    ],
)
def test_refusals_are_one_sentence_and_change_nothing(what: str, sentence: str, tmp_path: Path) -> None:
    path = make_refused(what, tmp_path)
    model, x = layered(torch.float32)
    before, kinds = model(x), [type(layer) for layer in model.children()]
    with pytest.raises(CheckpointError, match=sentence) as caught:
        load_lora(model, path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    assert [type(layer) for layer in model.children()] == kinds
    assert torch.equal(model(x), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_two_adapters_for_one_layer_are_refused(tmp_path: Path) -> None:
    model, _ = wrapped()
    path = save_lora(trained(model, "lora"), tmp_path / "a.safetensors")
    write_extra(path, {"model.transformer.to_qkv.lora_A": (3, 6), "model.transformer.to_qkv.lora_B": (8, 3)})
    other, _ = wrapped()
    with pytest.raises(CheckpointError, match=r"1 layers of this model have two adapters in it \(model\.model\."):
        load_lora(other, path)
    assert not attached_loras(other)


def test_a_filter_without_a_match_takes_the_adapter_off_again(tmp_path: Path) -> None:
    model, x = layered(torch.float32)
    path = save_lora(trained(model, "lora"), tmp_path / "a.safetensors")
    other, _ = layered(torch.float32)
    before = other(x)
    with pytest.raises(ConfigError, match="'absent' matches none of the adapter's layers"):
        load_lora(other, path, layers=["absent"])
    assert not attached_loras(other)
    assert torch.equal(other(x), before)


@pytest.mark.parametrize("kind", ["lora", "lora-xs"])
def test_other_weights_of_the_same_shape(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = layered(torch.float32)
    path = save_lora(trained(model, kind), tmp_path / "a.safetensors", model=model, metadata={"base_name": "tiny"})
    same, _ = layered(torch.float32)
    load_lora(same.to(torch.bfloat16), path)
    assert not caplog.text
    other, _ = layered(torch.float32)
    other.widen.weight.data *= 1.01
    if kind == "lora-xs":
        with pytest.raises(CheckpointError, match=r"trained for the weights of tiny; .* singular vectors"):
            load_lora(other, path)
        return
    load_lora(other, path)
    assert "a.safetensors was trained for other weights (tiny) of the same shape" in caplog.text
