"""Training of CLAP: pairs are learnt, terms and mistakes, two processes as one, retrieval figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.small_clap_model import clap_config, write_roberta

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.clap import CLAPTrainingWrapper, retrieval_metrics
from stable_audio_tools.training.factory import create_training_wrapper_from_config


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_roberta(tmp_path_factory.mktemp("roberta"))


def wrapper(roberta: str, noised: bool = False, **training) -> CLAPTrainingWrapper:
    torch.manual_seed(0)
    config = clap_config(roberta, noised, {"learning_rate": 3e-3, **training})
    module = create_training_wrapper_from_config(config, create_model_from_config(config))
    assert isinstance(module, CLAPTrainingWrapper)
    return module


TEXTS = ["a slow piano", "fast drum loop", "rain", "slow drum with rain"]


def pairs() -> tuple[torch.Tensor, list[dict]]:
    torch.manual_seed(1)
    audio = torch.sin(torch.arange(512) * torch.tensor([0.05, 0.11, 0.23, 0.4])[:, None])[:, None].expand(-1, 2, -1)
    metadata = [{"prompt": text, "padding_mask": [torch.arange(512) < 300 + 50 * i]} for i, text in enumerate(TEXTS)]
    return audio, metadata


@pytest.mark.parametrize("noised", [False, True])
def test_pairs_are_learnt(roberta, noised, monkeypatch):
    module = wrapper(roberta, noised, mask_padding_attention=True)
    logged: dict = {}
    monkeypatch.setattr(module, "log_terms", logged.update)
    monkeypatch.setattr(module, "learning_rate", lambda: 0.0)
    monkeypatch.setattr(module, "_of_all", lambda vectors: vectors)
    monkeypatch.setattr(type(module), "global_rank", 0)
    optimizer = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    losses = []
    for _ in range(40):
        loss = module.training_step(pairs(), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses
    assert {"contrastive_loss", "alignment_loss", "uniformity", "cross_uniformity", "audio_uniformity"} <= set(logged)


def test_a_run_trains_and_validates(roberta, tmp_path: Path, run_training, dataset):
    rule = tmp_path / "words.py"
    rule.write_text("def get_custom_metadata(info, audio):\n    return {'prompt': info['relpath'].split('_')[0]}\n")
    data = json.loads(dataset.read_text())
    data["datasets"][0]["custom_metadata_module"] = str(rule)
    (tmp_path / "data.json").write_text(json.dumps(data))
    config = tmp_path / "clap.json"
    config.write_text(json.dumps(clap_config(roberta, True, {"learning_rate": 1e-3})))
    extra = ("--dataset-config", str(tmp_path / "data.json"), "--val-dataset-config", str(tmp_path / "data.json"))
    folder = run_training(config, "--max-steps", "2", "--val-every", "2", *extra)
    assert any(folder.rglob("*.ckpt"))
    assert "audio_to_text_R@1" in (folder / "metrics" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"loss_config": {"contrastve": 1.0}}, "unknown term; allowed: contrastive"),
        ({"learning_rate": None}, "learning_rate"),
    ],
)
def test_mistakes_are_named(roberta, training, message):
    with pytest.raises(ConfigError, match=message):
        wrapper(roberta, **training)


def test_without_a_pretransform_the_data_holds_latents(roberta):
    config = clap_config(roberta)
    del config["model"]["pretransform"]
    with pytest.raises(ConfigError, match=r"model\.pretransform: missing"):
        create_training_wrapper_from_config(config, create_model_from_config(config))


def test_prompts_are_needed(roberta):
    with pytest.raises(ConfigError, match="the dataset supplies no 'prompt'"):
        wrapper(roberta)._embed((torch.randn(1, 2, 512), [{}]), noised=False)


def test_retrieval_figures_by_hand():
    text = torch.eye(3)
    audio = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # two partners exchanged
    metrics = retrieval_metrics(audio, text, torch.tensor(10.0))
    assert float(metrics["audio_to_text_R@1"]) == pytest.approx(1 / 3)
    assert float(metrics["audio_to_text_R@5"]) == 1.0
    assert float(metrics["text_to_audio_mean_rank"]) == pytest.approx((1 + 2 + 2) / 3)
    assert float(metrics["text_to_audio_mAP@10"]) == pytest.approx((1 + 0.5 + 0.5) / 3)


PROCESS = """
import sys, torch, torch.distributed as dist
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from support.small_clap_model import clap_config
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.factory import create_training_wrapper_from_config
from stable_audio_tools.training.clap import CLAPTrainingWrapper
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
weights = {"uniformity": 0.0, "cross_uniformity": 0.0}
config = clap_config(sys.argv[2], False, {"learning_rate": 1e-3, "loss_config": weights})
model = create_model_from_config(config)
module = create_training_wrapper_from_config(config, model)
module.log_terms = lambda terms: None
module.learning_rate = lambda: 0.0
CLAPTrainingWrapper.global_rank = property(lambda self: rank)
from torch.distributed.nn.functional import all_gather
module._of_all = lambda v: torch.cat(all_gather(v)) if world > 1 else v
torch.manual_seed(1)
audio = torch.randn(4, 2, 512)
texts = ["a slow piano", "fast drum loop", "rain", "slow drum"]
share = slice(rank * 4 // world, (rank + 1) * 4 // world)
model.eval()
loss = module.training_step((audio[share], [{"prompt": t} for t in texts[share]]), 0)
loss.backward()
grads = [p.grad / world for p in model.parameters() if p.grad is not None]
loss = loss.detach() / world
for value in (*grads, loss):
    dist.all_reduce(value)
if rank == 0:
    print("SUM", float(loss), float(sum(g.double().square().sum() for g in grads)))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(roberta, tmp_path: Path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    tests = str(Path(__file__).parents[1])
    figures = []
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        done = subprocess.run(
            [*command, str(script), tests, roberta], capture_output=True, text=True, timeout=120, check=True
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("SUM"))
        figures.append([float(value) for value in line.split()[1:]])
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
