"""`training.song_describer_eval`: scores during training equal those of the script, and nothing is swallowed."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.launching import TORCHRUN, run, words
from support.small_sounds import RATE, tone
from torch import nn

from stable_audio_tools.cli import evaluate
from stable_audio_tools.cli.train import unwrap
from stable_audio_tools.data.audio_io import write
from stable_audio_tools.models import create_model_from_config
from stable_audio_tools.training.callbacks import song_describer
from stable_audio_tools.training.callbacks.song_describer import BestCheckpoint
from stable_audio_tools.training.factory import check_training_config, create_song_describer_callback_from_config

WORDS = ("drums", "bass", "chords", "rain", "bells")
NODE = {"type": "logmel", "config": {"bands": 8, "window_seconds": 0.2}}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captions")
    rows = []
    for index, word in enumerate(WORDS):
        write(root / f"{index}.wav", tone(index, 1.0), RATE)
        rows.append([index, 100 + index, f"{index}.wav", word, 1.0])
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["caption_id", "track_id", "path", "caption", "duration"], *rows])
    words = ["--csv-path", str(root / "table.csv"), "--audio-dir", str(root), "--output-path", str(root / "r.npz")]
    assert evaluate.embed_song_describer([*words, "--embedder", "logmel:bands=8,window_seconds=0.2"]) == 0
    return root / "r.npz"


def judged_by(path: Path, **keys: Any) -> Any:
    """A change of the config: prompts out of five words, and the section."""

    def change(config: dict[str, Any]) -> None:
        renamed = json.loads(json.dumps(config["model"]).replace('"sound"', '"prompt"'))
        config["model"] = renamed
        config["training"].pop("demo", None)
        config["training"]["song_describer_eval"] = {
            "precomputed_embeddings_path": str(path),
            "eval_every": 2,
            "num_prompts": 4,
            "eval_steps": 2,
            "clap_device": "cpu",
            **keys,
        }

    return change


@pytest.fixture
def prompted(dataset: Path) -> Path:
    """The clips' own captions under the key that the model reads."""
    config = json.loads(dataset.read_text())
    module = dataset.parent / "words.py"
    module.write_text(
        f"def get_custom_metadata(info, audio):\n    words = {WORDS}\n"
        "    return {'prompt': next((w for w in words if w in info['relpath']), words[0])}\n"
    )
    config["datasets"][0]["custom_metadata_module"] = str(module)
    path = dataset.parent / "prompted.json"
    path.write_text(json.dumps(config))
    return path


def logged(folder: Path, name: str) -> list[float]:
    with (folder / "metrics" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def scores_of(folder: Path, step: int) -> dict[str, Any]:
    document = json.loads((folder / "song_describer" / f"step_{step:08d}.json").read_text())
    result: dict[str, Any] = document["results"][0]
    return result


def test_scores_in_training_are_those_of_the_script(
    references: Path, prompted: Path, write_config: Any, run_training: Any, checkpoint_of: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The averaged weights, the same noise, the same sampler."""
    seen: list[float] = []
    save = BestCheckpoint._save

    def watch(self: BestCheckpoint, trainer: Any) -> None:
        seen.append(float(trainer.callback_metrics["songscriber/logmel_fad"]))  # what EarlyStopping would look at
        save(self, trainer)

    monkeypatch.setattr(BestCheckpoint, "_save", watch)
    path = write_config("tiny_diffusion_cond", judged_by(references, keep_best=True))
    folder = run_training(path, "--max-steps", "4", "--dataset-config", str(prompted))
    found = {step: scores_of(folder, step) for step in (2, 4)}
    assert logged(folder, "songscriber/logmel_fad") == pytest.approx(
        [result["scores"]["logmel_fad"] for result in found.values()], rel=1e-6
    )
    best = min(found, key=lambda step: found[step]["scores"]["logmel_fad"])
    (kept,) = (folder / "checkpoints" / "best").glob("*.ckpt")
    assert kept.name.endswith(f"step={best}.ckpt")
    assert seen[-1] == pytest.approx(found[best]["scores"]["logmel_fad"], rel=1e-6)

    target = tmp_path / "exported"
    arguments = ["--ckpt-path", str(checkpoint_of(folder)), "--name", str(target), "--use-safetensors"]
    assert unwrap([*arguments, "--model-config", str(path)]) == 0
    words = ["--model-config", str(path), "--ckpt-path", f"{target}.safetensors", "--steps", "2", "--device", "cpu"]
    words += ["--precomputed-embeddings-path", str(references), "--limit", "4", "--output", str(tmp_path / "scores")]
    assert evaluate.song_describer(words) == 0
    (alone,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["results"]
    assert alone["setup"] == found[4]["setup"] and alone["subject"]["weights"] == found[4]["subject"]["weights"]
    # Weights lie elsewhere in memory, and products of float32 round by how they lie.
    for name, value in found[4]["scores"].items():
        assert alone["scores"][name] == (None if value is None else pytest.approx(value, rel=1e-5)), name


def test_judging_changes_nothing_of_the_training(
    references: Path, prompted: Path, write_config: Any, run_training: Any, losses_of: Any
) -> None:
    path = write_config("tiny_diffusion_cond", judged_by(references))
    watched = losses_of(run_training(path, "--max-steps", "5", "--dataset-config", str(prompted)))
    path = write_config("tiny_diffusion_cond", judged_by(references, enabled=False))
    alone = run_training(path, "--max-steps", "5", "--dataset-config", str(prompted), name="alone")
    assert watched == losses_of(alone)
    assert not (alone / "song_describer").exists()


def test_training_starts_without_the_references_and_says_what_is_missing(
    prompted: Path, write_config: Any, run_training: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config("tiny_diffusion_cond", judged_by(tmp_path / "later.npz"))
    folder = run_training(path, "--max-steps", "4", "--dataset-config", str(prompted))
    told = capsys.readouterr().err
    assert told.count("later.npz does not exist, so captions are not evaluated; write it with python scripts/") == 1
    assert list((folder / "checkpoints").glob("*.ckpt")) and not (folder / "song_describer").exists()


def test_an_error_is_told_once_and_logged_or_ends_the_run(
    references: Path, prompted: Path, write_config: Any, run_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = judged_by(references, eval_sampler_type="no-such-sampler")
    folder = run_training(
        write_config("tiny_diffusion_cond", broken), "--max-steps", "4", "--dataset-config", str(prompted)
    )
    told = capsys.readouterr().err
    assert told.count("the evaluation on captions at step 2 failed: ValueError") == 1
    assert "no-such-sampler" in told and "step 4 failed" not in told
    assert logged(folder, "songscriber/failed") == [1.0, 1.0]
    strict = judged_by(references, eval_sampler_type="no-such-sampler", on_error="stop")
    run_training(
        write_config("tiny_diffusion_cond", strict), "--max-steps", "4", "--dataset-config", str(prompted), status=2,
        name="strict",
    )  # fmt: skip
    assert "error: the evaluation on captions at step 2 failed" in capsys.readouterr().err


class Trainer:
    """What the callbacks ask of Lightning's: one process of several."""

    current_epoch = 0

    def __init__(self, folder: Path, rank: int = 0, processes: int = 1) -> None:
        self.default_root_dir, self.global_step, self.loggers = str(folder), 0, ()
        self.global_rank, self.world_size, self.is_global_zero = rank, processes, rank == 0

    def save_checkpoint(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(self.global_step))


class Judged(nn.Module):
    """What the callback asks of a training module."""

    device, weight_average = torch.device("cpu"), None

    def __init__(self, diffusion: nn.Module) -> None:
        super().__init__()
        self.diffusion = diffusion

    def log_dict(self, *_: Any, **__: Any) -> None:
        pass


def test_processes_share_the_captions_and_none_waits_for_one_that_failed(
    references: Path, write_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    config = json.loads(write_config("tiny_diffusion_cond", judged_by(references, num_prompts=5)).read_text())
    torch.manual_seed(0)
    module = Judged(create_model_from_config(config))
    callback = create_song_describer_callback_from_config(config, tmp_path)
    assert callback is not None
    alone = callback.run(Trainer(tmp_path), module)  # type: ignore[arg-type]
    assert alone is not None

    shares: list[Any] = []
    monkeypatch.setattr(song_describer, "gather", lambda own: [shares.append(own) or own, ({}, "disk on fire")])
    for _ in range(2):
        assert callback.run(Trainer(tmp_path, 0, 2), module) is None  # type: ignore[arg-type]
    assert len(shares[0][0]) == 3 and caplog.text.count("failed: disk on fire") == 1
    monkeypatch.setattr(song_describer, "gather", lambda own: [shares[0], own])
    together = callback.run(Trainer(tmp_path, 1, 2), module)  # type: ignore[arg-type]
    assert together == alone


@pytest.mark.slow
def test_processes_that_divide_a_model_evaluate_unequal_shares(
    references: Path, prompted: Path, write_config: Any, tmp_path: Path
) -> None:
    """Of three prompts one process generates two; the scores are those of the exported model."""
    config = write_config("tiny_diffusion_cond", judged_by(references, num_prompts=3, gen_batch_size=1))
    flags = words(config, prompted, tmp_path / "runs", "--strategy", "fsdp", "--max-steps", 2)
    run((TORCHRUN, *flags))
    (folder,) = (tmp_path / "runs" / "run").iterdir()
    scores = scores_of(folder, 2)
    (checkpoint,) = folder.glob("checkpoints/*.ckpt")
    target = tmp_path / "exported"
    assert unwrap(["--ckpt-path", str(checkpoint), "--name", str(target), "--use-safetensors"]) == 0
    flags = ["--model-config", str(config), "--ckpt-path", f"{target}.safetensors", "--steps", "2", "--device", "cpu"]
    flags += ["--precomputed-embeddings-path", str(references), "--limit", "3", "--output", str(tmp_path / "scores")]
    assert evaluate.song_describer(flags) == 0
    (alone,) = json.loads((tmp_path / "scores" / "scores.json").read_text())["results"]
    assert alone["subject"]["weights"] == scores["subject"]["weights"]
    assert alone["scores"]["logmel_fad"] == pytest.approx(scores["scores"]["logmel_fad"], rel=1e-5)


def test_the_best_is_kept_and_patience_ends(tmp_path: Path) -> None:
    trainer, best = Trainer(tmp_path), BestCheckpoint(tmp_path / "best", keep=True, patience=2)
    stops = []
    for step, score in enumerate([3.0, 2.0, 2.5, 1.0, 1.0, 4.0], 1):
        trainer.global_step = step
        stops.append(best.judge(trainer, score))  # type: ignore[arg-type]
        if step == 3:  # a resumed run remembers
            state, best = best.state_dict(), BestCheckpoint(tmp_path / "best", keep=True, patience=2)
            best.load_state_dict(state)
    assert stops == [False, False, False, False, False, True]
    assert [path.read_text() for path in (tmp_path / "best").glob("*")] == ["4"]


def test_early_stopping_ends_a_run(
    references: Path, prompted: Path, write_config: Any, run_training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def frozen(config: dict[str, Any]) -> None:
        judged_by(references, patience=2, eval_every=1)(config)
        config["training"]["optimizer_configs"]["diffusion"]["optimizer"]["config"]["lr"] = 1e-30

    run_training(
        write_config("tiny_diffusion_cond", frozen), "--max-steps", "9", "--dataset-config", str(prompted),
    )  # fmt: skip
    assert "2 evaluations without a better fad; stopping" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"precomputed_embeddings_path": None}, "precomputed_embeddings_path: missing; it names the file"),
        ({"eval_evry": 3}, "eval_evry: unknown key; did you mean 'eval_every'"),
        ({"num_prompts": 0}, "num_prompts: .*1"),
        ({"monitor": "loss"}, "monitor"),
        ({"embedder": NODE, "clap_model_name": "x"}, "give embedder or clap_model_name, not both"),
    ],
)
def test_mistakes_in_the_section(keys: dict[str, Any], sentence: str, write_config: Any) -> None:
    path = write_config("tiny_diffusion_cond", judged_by(Path("r.npz"), **keys))
    with pytest.raises(ValueError, match=f"training.song_describer_eval.*{sentence}"):
        check_training_config(json.loads(path.read_text()))


def test_only_models_of_captions_are_judged(write_config: Any) -> None:
    def section(config: dict[str, Any]) -> None:
        config["training"]["song_describer_eval"] = {"precomputed_embeddings_path": "r.npz"}

    with pytest.raises(ValueError, match="'autoencoder' take no captions; remove this section"):
        check_training_config(json.loads(write_config("tiny_autoencoder", section).read_text()))


def test_keys_of_the_jamendo_fork_are_taken(write_config: Any) -> None:
    """Its section as it stands in `model_config_freeze_vae.json`."""
    published = {
        "enabled": True, "precomputed_embeddings_path": "dataset/small-700/song_describer_clap_embeddings.npz",
        "eval_every": 2000, "num_prompts": 128, "eval_steps": 100, "eval_cfg_scale": 7.0, "gen_batch_size": 4,
        "clap_batch_size": 8, "clap_model_name": "laion/clap-htsat-fused", "clap_device": "cuda",
        "metric_prefix": "songscriber",
    }  # fmt: skip

    def section(config: dict[str, Any]) -> None:
        config["training"]["song_describer_eval"] = published

    found = check_training_config(json.loads(write_config("tiny_diffusion_cond", section).read_text()))
    assert found.song_describer_eval is not None
    callback = found.song_describer_eval.build(sample_size=8192, demo=found.demo)
    plan = callback.plan
    assert (plan.every, plan.num_prompts, plan.sampling["cfg_scale"]) == (2000, 128, 7.0)
    assert plan.node == {"type": "clap", "config": {"name": "laion/clap-htsat-fused"}}
