"""run_dtrak_attribution.sh: what it runs is understood by the commands, with every setting and without."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from stable_audio_tools.cli import attribute

SCRIPT = Path(__file__).parents[2] / "scripts" / "run_dtrak_attribution.sh"
PARSERS = {
    "scripts/dtrak_extract_features.py": attribute.extract.parser,
    "scripts/dtrak_merge.py": attribute.merge.parser,
    "scripts/dtrak_score.py": attribute.score.parser,
}
NEEDED = {
    "MODEL_CONFIG": "my model.json",
    "UNWRAPPED_CKPT": "w.ckpt",
    "TRAIN_DATASET_CONFIG": "train.json",
    "QUERY_AUDIO_DIR": "outputs/my queries",
}
ALL = {
    "CROPS": "1",
    "LAMBDA_REG": "0.5",
    "QUERY_DATASET_CONFIG": "queries.json",
    "TRAIN_EXCLUDE_PATHS_FILE": "exclude.txt",
    "PRETRANSFORM_CKPT": "vae.ckpt",
    "TRAIN_COUNT": "10",
    "QUERY_COUNT": "2",
    "USED_DIM": "4096",
    "PARAM_REGEX": r"layers\.(1[6-9]|2[0-3])\.",
    "PROCESSES": "2",
}


def commands_of(tmp_path: Path, settings: dict[str, str]) -> list[list[str]]:
    """The commands that the script runs, told by a stand-in for Python."""
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/bash\nprintf "%q " "$@" >> {tmp_path}/told\necho >> {tmp_path}/told\n')
    stand_in.chmod(0o755)
    places = {"PYTHON": str(stand_in), "OUT_DIR": str(tmp_path / "out")}
    environment = {"PATH": os.environ["PATH"], **places, **settings}
    subprocess.run(["bash", str(SCRIPT)], check=True, env=environment, capture_output=True)
    return [shlex.split(line) for line in (tmp_path / "told").read_text().splitlines()]


def test_without_settings_it_takes_the_layout_of_the_guide(tmp_path: Path) -> None:
    train, query, scores = commands_of(tmp_path, {})
    given = attribute.extract.parser().parse_args(train[train.index("scripts/dtrak_extract_features.py") + 1 :])
    assert given.model_config == "jamendo_freeze_vae"
    assert Path(SCRIPT.parents[1], str(given.dataset_config)).is_file()
    asked = attribute.extract.parser().parse_args(query[query.index("scripts/dtrak_extract_features.py") + 1 :])
    assert Path(str(asked.dataset_config)).name == "dtrak_generated_queries.json"
    assert "scripts/dtrak_score.py" in scores


@pytest.mark.parametrize("settings", [NEEDED, {**NEEDED, **ALL}], ids=["few settings", "all"])
def test_what_it_runs_is_understood(settings: dict[str, str], tmp_path: Path) -> None:
    parsed = {}
    for words in commands_of(tmp_path, settings):
        start = next(index for index, word in enumerate(words) if word in PARSERS)
        arguments = PARSERS[words[start]]().parse_args(words[start + 1 :])
        parsed[Path(getattr(arguments, "feature_path", "scores")).name, words[start]] = vars(arguments)
    train, query = (
        parsed[f"{kind}_features.memmap", "scripts/dtrak_extract_features.py"] for kind in ("train", "query")
    )
    assert train["model_config"] == "my model.json" and train["f"] == query["f"] == "mean-squared-l2-norm"
    if "PROCESSES" in settings:
        assert ("train_features.memmap", "scripts/dtrak_merge.py") in parsed
        assert train["param_regex"] == ALL["PARAM_REGEX"] and train["max_examples"] == 10
        assert (query["dataset_config"], query["generated"], query["max_examples"]) == ("queries.json", None, 2)
        assert query["disable_random_crop"]
    else:
        assert query["generated"] == "outputs/my queries" and len(parsed) == 3
        assert not query["disable_random_crop"], "refused with generated files"
    alone = settings.get("CROPS") == "1"
    assert (train["crops"], train["disable_random_crop"]) == ((1, True) if alone else (4, False))
    scores = parsed["scores", "scripts/dtrak_score.py"]
    assert scores["train_feature_paths"] == [train["feature_path"]]
    assert scores["lambda_reg"] == (0.5 if alone else None), "chosen from the features by default"
    assert scores["query_feature_path"] == query["feature_path"] and scores["report_dir"] == str(tmp_path / "out")


@pytest.mark.parametrize(("gpus", "processes"), [(None, "1"), (0, "1"), (3, "3")])
def test_a_cluster_job_starts_a_process_for_each_gpu(gpus: int | None, processes: str, tmp_path: Path) -> None:
    """And one where there is none, or no command that would tell."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / SCRIPT.name).write_text('echo "$PROCESSES $NUM_WORKERS"\n')
    (tmp_path / "bin").mkdir()
    for name in ("bash", "wc"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    if gpus is not None:
        stand_in = tmp_path / "bin" / "nvidia-smi"
        stand_in.write_text("#!/bin/bash\n" + "echo GPU\n" * gpus)
        stand_in.chmod(0o755)
    told = {"PATH": str(tmp_path / "bin"), "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_CPUS_PER_TASK": "6"}
    done = subprocess.run(
        [str(shutil.which("bash")), str(SCRIPT.with_suffix(".slurm"))], env=told, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, [processes, str(6 // int(processes))]), done.stderr
