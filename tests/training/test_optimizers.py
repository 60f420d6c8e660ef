"""Optimisers and schedules by name, groups by pattern, and what is said about mistakes."""

import copy
import io
import logging
from typing import Any

import pytest
import torch
from torch import nn

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.training.optimizers import configure_optimizer, resolve_optimizer
from stable_audio_tools.training.optims import orthogonalized
from stable_audio_tools.training.utils import InverseLR, create_optimizer_from_config, create_scheduler_from_config


@pytest.fixture
def module() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    return model


def sgd(rate: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)


def test_inverse_decay_is_its_formula() -> None:
    optimizer = sgd(1e-3)
    schedule = InverseLR(optimizer, inv_gamma=10, power=0.5, warmup=0.9, final_lr=4e-4)
    for step in range(200):
        wanted = (1 - 0.9 ** (step + 1)) * max(4e-4, 1e-3 * (1 + step / 10) ** -0.5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted)
        optimizer.step()
        schedule.step()


def test_inverse_decay_goes_on_from_its_state() -> None:
    first, second = sgd(), sgd()
    schedule, resumed = InverseLR(first, 5, 0.7, 0.5), InverseLR(second, 5, 0.7, 0.5)
    for _ in range(7):
        first.step()
        schedule.step()
    resumed.load_state_dict(schedule.state_dict())
    for both in (schedule, resumed):
        both.optimizer.step()
        both.step()
    assert resumed.get_last_lr() == schedule.get_last_lr()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Adam", {"lr": 1e-4}),
        ("AdamW", {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("RMSprop", {}),
    ],
)
def test_optimisers_by_name_take_their_options(module: nn.Module, kind: str, config: dict) -> None:
    optimizer = create_optimizer_from_config({"type": kind, "config": config}, module)
    assert type(optimizer) is getattr(torch.optim, kind)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(p) for p in module.parameters() if p.requires_grad
    ]
    for key, value in config.items():
        assert optimizer.param_groups[0][key] == (tuple(value) if isinstance(value, list) else value)


def test_parameters_may_come_as_they_did(module: nn.Module) -> None:
    """A list of parameters, or pairs: all of them, frozen ones too."""
    for given in (module.parameters(), module.named_parameters()):
        optimizer = create_optimizer_from_config({"type": "Adam", "config": {"lr": 1e-4}}, given)
        assert len(optimizer.param_groups[0]["params"]) == 6


def test_eight_bit_optimisers_come_from_bitsandbytes(module: nn.Module) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    optimizer = create_optimizer_from_config({"type": "AdamW8bit", "config": {"lr": 1e-4}}, module)
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit)


def test_groups_by_pattern(module: nn.Module) -> None:
    config = {
        "type": "AdamW",
        "config": {"lr": 1e-3, "weight_decay": 0.1},
        "param_groups": [{"pattern": "*.bias", "weight_decay": 0.0}, {"pattern": "1.*", "lr": 1e-5}],
    }
    rest, biases, norm = create_optimizer_from_config(config, module).param_groups
    assert [id(p) for p in biases["params"]] == [id(module[i].bias) for i in range(3)]
    assert [id(p) for p in norm["params"]] == [id(module[1].weight)]  # its bias was taken
    assert [id(p) for p in rest["params"]] == [id(module[2].weight)]
    assert (biases["weight_decay"], norm["weight_decay"], rest["weight_decay"]) == (0.0, 0.1, 0.1)
    assert (biases["lr"], norm["lr"], rest["lr"]) == (1e-3, 1e-5, 1e-3)


def test_groups_that_take_everything_leave_no_empty_group(module: nn.Module) -> None:
    config = {"type": "AdamW", "config": {}, "param_groups": [{"pattern": "*", "lr": 1e-5}]}
    assert len(create_optimizer_from_config(config, module).param_groups) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "AdamX"}, "optimizer.type: no optimiser named 'AdamX'; did you mean 'Adam"),
        ({"config": {}}, "optimizer.type: missing"),
        ({"type": "Adam", "options": {}}, "optimizer.options: unknown key"),
        ({"type": "AdamW", "config": {"learning_rate": 1}}, "AdamW has no option 'learning_rate'"),
        ({"type": "AdamW", "config": {"lr": -1.0}}, "optimizer AdamW: Invalid learning rate"),
        (
            {"type": "Adam", "param_groups": [{"pattern": "*.gain", "lr": 1}]},
            r"param_groups\[0\].pattern: '\*.gain' matches no trainable parameter; names are like 0.bias",
        ),
        ({"type": "Adam", "param_groups": [{"pattern": "0.weight"}]}, "matches no trainable parameter"),
        (
            {"type": "Adam", "param_groups": [{"pattern": "*"}, {"pattern": "*.bias"}]},
            r"param_groups\[1\].pattern: '\*.bias' matches no trainable parameter that earlier patterns left",
        ),
        ({"type": "Adam", "param_groups": [{"pattern": "*", "decay": 1}]}, "Adam has no option 'decay'"),
        ({"type": "Adam", "param_groups": [{"lr": 1}]}, r"param_groups\[0\].pattern: missing"),
    ],
)
def test_mistakes_of_optimisers_are_named(module: nn.Module, config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_optimizer_from_config(config, module)


def test_groups_need_names(module: nn.Module) -> None:
    with pytest.raises(ConfigError, match="give the module or its named_parameters"):
        create_optimizer_from_config({"type": "Adam", "param_groups": [{"pattern": "*"}]}, module.parameters())


def test_a_frozen_module_is_nothing_to_train(module: nn.Module) -> None:
    with pytest.raises(ConfigError, match="nothing to train: all parameters are frozen"):
        create_optimizer_from_config({"type": "Adam"}, module.requires_grad_(False))


@pytest.mark.parametrize(
    ("kind", "config"), [("ExponentialLR", {"gamma": 0.5}), ("StepLR", {"step_size": 1, "gamma": 0.5})]
)
def test_schedules_by_name(kind: str, config: dict) -> None:
    optimizer = sgd(1.0)
    schedule = create_scheduler_from_config({"type": kind, "config": config}, optimizer)
    assert type(schedule) is getattr(torch.optim.lr_scheduler, kind)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.5]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "InverseLr"}, "no schedule named 'InverseLr'; did you mean 'InverseLR'"),
        ({"type": "InverseLR", "config": {"warmup": 1.0}}, "warmup must be at least 0 and less than 1, got 1"),
        ({"type": "InverseLR", "config": {"inv_gamma": 0}}, "inv_gamma must be above 0"),
        ({"type": "InverseLR", "config": {"gamma": 1}}, "InverseLR has no option 'gamma'"),
        ({"type": "StepLR", "config": {}}, "scheduler StepLR: .*step_size"),
    ],
)
def test_mistakes_of_schedules_are_named(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_scheduler_from_config(config, sgd())


def test_what_lightning_is_given(module: nn.Module) -> None:
    optimizer = {"type": "Adam", "config": {"lr": 1e-3}}
    assert isinstance(configure_optimizer({"optimizer": optimizer}, module), torch.optim.Adam)
    schedule = {"type": "InverseLR", "config": {"warmup": 0.9}}
    given = configure_optimizer({"optimizer": optimizer, "scheduler": schedule}, module)
    assert isinstance(given["optimizer"], torch.optim.Adam)
    assert isinstance(given["lr_scheduler"]["scheduler"], InverseLR)
    assert given["lr_scheduler"]["interval"] == "step"
    plateau = {"type": "ReduceLROnPlateau", "monitor": "val/loss", "interval": "epoch"}
    told = configure_optimizer({"optimizer": optimizer, "scheduler": plateau}, module)["lr_scheduler"]
    assert (told["monitor"], told["interval"]) == ("val/loss", "epoch")


def test_a_learning_rate_stands_in_for_a_config(caplog: pytest.LogCaptureFixture) -> None:
    default = resolve_optimizer(None, "lm", 1e-4, "AdamW", betas=[0.9, 0.95])
    assert default == {"optimizer": {"type": "AdamW", "config": {"lr": 1e-4, "betas": [0.9, 0.95]}}}
    configs = {"diffusion": {"optimizer": {"type": "SGD", "config": {"lr": 1.0}}}}
    assert resolve_optimizer(configs, "diffusion", None, "Adam") == configs["diffusion"]
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        resolve_optimizer(configs, "diffusion", 1e-4, "Adam")
    assert "learning_rate is ignored" in caplog.text
    with pytest.raises(ConfigError, match="give learning_rate, or optimizer_configs"):
        resolve_optimizer(None, "diffusion", None, "Adam")
    with pytest.raises(ConfigError, match="needs an entry 'lm' with an 'optimizer'; it has diffusion"):
        resolve_optimizer(configs, "lm", None, "Adam")


def test_on_the_cpu_the_step_is_torchs_one_pass_unless_told_otherwise(module: nn.Module) -> None:
    def made(kind: str, **config: object) -> torch.optim.Optimizer:
        return create_optimizer_from_config({"type": kind, "config": {"lr": 1e-3, **config}}, module)

    assert made("AdamW").param_groups[0]["fused"] is True
    assert made("AdamW", foreach=True).param_groups[0]["foreach"] is True
    assert made("AdamW", fused=False).param_groups[0]["fused"] is False
    assert "fused" not in made("RMSprop").param_groups[0]


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_the_one_pass_step_is_the_published_one(kind: str) -> None:
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = nn.Linear(8, 8).double()
        optimizer = create_optimizer_from_config({"type": kind, "config": {"lr": 0.1, "fused": fused}}, layer)
        for step in range(5):
            optimizer.zero_grad()
            layer(torch.full((2, 8), step + 1.0, dtype=torch.double)).square().sum().backward()
            optimizer.step()
        results.append(layer.weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=0)


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Conv1d(8, 4, 3))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "ns_steps": 5}
    optimizer = create_optimizer_from_config({"type": "Muon", "config": {**options, "betas": [0.9, 0.95]}}, ours)
    matrices, rest = optimizer.param_groups
    assert {id(p) for p in matrices["params"]} == {id(ours[1].weight), id(ours[3].weight)}
    assert (matrices["muon"], rest["muon"], len(rest["params"])) == (True, False, 5)
    muon = torch.optim.Muon([theirs[1].weight], adjust_lr_fn="match_rms_adamw", **options)
    names = [p for p in theirs.parameters() if p.ndim != 2 or p is theirs[0].weight]
    adamw = torch.optim.AdamW([p for p in names if p.ndim < 3], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    for step in range(4):
        for first, second in zip(ours.parameters(), theirs.parameters()):
            first.grad = torch.randn(first.shape, generator=torch.Generator().manual_seed(step)) * 0.1
            second.grad = first.grad.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    for first, second in zip(ours.parameters(), theirs.parameters()):
        if first.ndim < 3:
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    moved = orthogonalized(torch.randn(4, 24), 5).float()
    assert torch.linalg.svdvals(moved).sub(1).abs().max() < 0.4


def test_groups_of_muon_keep_their_options() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"pattern": "0.*", "lr": 1e-4}, {"pattern": "1.weight", "muon": False}]
    parted = create_optimizer_from_config({"type": "Muon", "param_groups": groups}, model).param_groups
    found = [(tuple(p.shape), group["muon"], group["lr"]) for group in parted for p in group["params"]]
    assert found == [((2,), False, 1e-3), ((4, 3), True, 1e-4), ((4,), False, 1e-4), ((2, 4), False, 1e-3)]
    assert torch.load(io.BytesIO(saved(parted)), weights_only=True)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "Prodigy", "Muon"])
def test_optimisers_of_other_packages_lower_a_loss(kind: str) -> None:
    package = {"AdamWScheduleFree": "schedulefree", "Prodigy": "prodigyopt", "Muon": "torch"}[kind]
    pytest.importorskip(package)
    torch.manual_seed(0)
    layer, target = nn.Linear(4, 4), torch.randn(8, 4)
    inputs = torch.randn(8, 4)
    config = {"type": kind, "config": {} if kind == "Prodigy" else {"lr": 0.05}}
    optimizer = create_optimizer_from_config(config, layer)
    losses = []
    if kind == "AdamWScheduleFree":
        optimizer.train()  # type: ignore[attr-defined]
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_schedule_free_runs_resume_and_their_checkpoints_hold_averages(
    write_config: Any, run_training: Any, checkpoint_of: Any, losses_of: Any
) -> None:
    pytest.importorskip("schedulefree")

    def free(config: dict[str, Any]) -> None:
        config["training"]["optimizer_configs"] = {
            "diffusion": {"optimizer": {"type": "AdamWScheduleFree", "config": {"lr": 0.01}}}
        }
        config["training"].update(use_ema=False)
        config["training"].pop("learning_rate", None)

    path = write_config("tiny_diffusion_uncond", free)
    whole = run_training(path, "--max-steps", "4", "--checkpoint-every", "2", name="whole")
    middle = next((whole / "checkpoints").glob("*step=2.ckpt"))
    state = torch.load(middle, weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["train_mode"] is False
    resumed = run_training(path, "--max-steps", "4", "--ckpt-path", str(middle), name="parts")
    assert losses_of(resumed) == pytest.approx(losses_of(whole)[2:], rel=1e-4)


def test_schedule_free_and_an_average_are_one_too_many(write_config: Any, run_training: Any, capfd: Any) -> None:
    pytest.importorskip("schedulefree")

    def both(config: dict[str, Any]) -> None:
        optimizer = {"optimizer": {"type": "AdamWScheduleFree", "config": {"lr": 0.01}}}
        config["training"].update(use_ema=True, optimizer_configs={"diffusion": optimizer})
        config["training"].pop("learning_rate", None)

    run_training(write_config("tiny_diffusion_uncond", both), "--max-steps", "1", status=2)
    assert "training.use_ema: schedule-free optimisers average the weights themselves" in capfd.readouterr().err


def test_warmup_follows_the_schedules_of_diffusers() -> None:
    from diffusers.optimization import get_scheduler

    for shape, name in (
        ("cosine", "cosine"),
        ("linear", "linear"),
        ("constant", "constant_with_warmup"),
    ):
        ours, theirs = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2))
        node = {"type": "WarmupLR", "config": {"warmup_steps": 3, "total_steps": 9, "shape": shape}}
        schedule = create_scheduler_from_config(node, ours)
        expected = get_scheduler(name, theirs, num_warmup_steps=3, num_training_steps=9)
        for _ in range(9):
            assert schedule.get_last_lr() == pytest.approx(expected.get_last_lr(), abs=1e-9), shape
            for optimizer, scheduler in ((ours, schedule), (theirs, expected)):
                optimizer.step()
                scheduler.step()
    with pytest.raises(ConfigError, match="total_steps must be more than warmup_steps, 3, got None"):
        create_scheduler_from_config({"type": "WarmupLR", "config": {"warmup_steps": 3, "shape": "cosine"}}, ours)
