"""Containers and launch scripts, without an engine: linters, real parsers, and tools that tell how they were called."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import docs_commands as commands

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "container"
SCRIPTS = [*sorted(FOLDER.glob("*.sh")), FOLDER / "train.sbatch", ROOT / ".ci" / "run"]


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed for this platform")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_clean(script: Path) -> None:
    result = subprocess.run([tool("shellcheck"), "--severity=style", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_dockerfile_is_clean() -> None:
    result = subprocess.run([tool("hadolint"), FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stdout, result.stdout


# ------------------------------------------------------------------ what is named exists


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of each instruction of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(word, rest) for word, rest in lines]


def test_the_image_runs_as_a_user_and_starts_python() -> None:
    steps = instructions()
    users = [rest for word, rest in steps if word == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert json.loads(dict(steps)["ENTRYPOINT"]) == ["python"]
    assert commands.ours(("python", *json.loads(dict(steps)["CMD"])[:2], "check")) is not None


def test_what_is_copied_exists_and_dependencies_come_first() -> None:
    copies = [rest.split() for word, rest in instructions() if word == "COPY"]
    sources = [[word for word in words[:-1] if not word.startswith("--")] for words in copies]
    assert sources[-1] == ["."], "the source comes last, so that a change of it keeps the layer of dependencies"
    for name in [name for names in sources[:-1] for name in names]:
        assert (ROOT / name).is_file(), name
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert not ignored & {name.split("/")[0] for names in sources[:-1] for name in names}


def test_the_dependency_layer_has_what_the_build_reads() -> None:
    """`pip install .` before the source is there reads the project file, what it names, and the version."""
    project = (ROOT / "pyproject.toml").read_text()
    assert 'readme = "README.md"' in project and "stable_audio_tools.version.__version__" in project
    copied = " ".join(rest for word, rest in instructions() if word == "COPY")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "stable_audio_tools/version.py"):
        assert name in copied


def test_comments_show_commands_that_parse() -> None:
    for path in FOLDER.iterdir():
        for line in re.findall(
            r"^ *#? *((?:docker run|apptainer run|bash container/|sbatch) .*)$", path.read_text(), re.M
        ):
            if "..." not in line:
                for command in commands.commands_in(line):
                    commands.check_foreign(command)


def test_the_app_is_started_with_flags_that_it_has() -> None:
    service = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())["services"]["app"]
    assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    script, *words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(word)) for word in service["command"]]
    arguments = commands.parse(*commands.of_script(script, words))
    assert arguments is not None and arguments.host == "0.0.0.0"
    assert service["ports"] == [f"127.0.0.1:{arguments.port}:{arguments.port}"]
    assert arguments.tmp_dir in [volume.split(":")[1] for volume in service["volumes"]]
    assert "STABLE_AUDIO_PASSWORD" in service["environment"] and arguments.username
    assert "STABLE_AUDIO_PASSWORD" in (ROOT / "stable_audio_tools" / "cli" / "run_gradio.py").read_text()


def test_the_apptainer_file_starts_from_our_image() -> None:
    text = (FOLDER / "apptainer.def").read_text()
    name = re.search(r"^From: ([\w-]+):latest$", text, re.MULTILINE)
    assert name and f"docker build -t {name[1]} " in (FOLDER / "build_apptainer.sh").read_text()
    assert {"%environment", "%runscript", "%test", "%help"} <= set(re.findall(r"^%\w+", text, re.MULTILINE))
    paths = dict(instructions())
    assert f"cd {paths['WORKDIR']} " in text


# ------------------------------------------------------------------ what the scripts call


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH whose torchrun, srun, docker and apptainer print their arguments."""
    for name in ("torchrun", "srun", "docker", "apptainer"):
        stand_in = tmp_path / name
        stand_in.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" {name} "$@"\n')
        stand_in.chmod(0o755)
    return f"{tmp_path}{os.pathsep}{os.environ['PATH']}"


def run(script: str, *words: str, path: str, **environment: str) -> list[str]:
    result = subprocess.run(
        ["bash", FOLDER / script, *words],
        cwd=ROOT,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


TRAINING = ("--name", "vae", "--model-config", "MODEL.json", "--dataset-config", "DATASET.json")


def launched(words: list[str]) -> tuple[Any, str, Any]:
    """What torchrun's own parser and the script's make of a command line."""
    from torch.distributed.run import get_args_parser

    assert words[0] == "torchrun"
    about = get_args_parser().parse_args(words[1:])
    script = about.training_script
    return about, script, commands.parse(*commands.of_script(script, about.training_script_args))


def test_launch_on_one_machine(path: str) -> None:
    about, script, arguments = launched(run("launch.sh", "train.py", *TRAINING, path=path))
    assert (about.standalone, about.nproc_per_node, script) == (True, "gpu", "train.py")
    assert arguments.num_nodes == 1


@pytest.mark.parametrize(
    "words",
    [
        ("train.py", *TRAINING),
        ("generate.py", "--output-dir", "out", "--cond-yaml-path", "PROMPTS.yaml"),
        ("scripts/pre_encode.py", "--dataset-config", "DATASET.json", "--output-path", "latents"),
    ],
    ids=lambda words: words[0],
)
def test_launch_on_several_machines(path: str, words: tuple[str, ...]) -> None:
    more = {"NODES": "3", "HEAD": "node-1", "RUN_ID": "vae-7", "GPUS": "8"}
    about, script, arguments = launched(run("launch.sh", *words, path=path, **more))
    assert (about.nnodes, about.nproc_per_node, about.rdzv_endpoint) == ("3", "8", "node-1:29500")
    assert (about.rdzv_backend, about.rdzv_id, script) == ("c10d", "vae-7", words[0])
    assert words[0] != "train.py" or arguments.num_nodes == 3


def test_launch_asks_for_what_several_machines_need(path: str) -> None:
    result = subprocess.run(
        ["bash", FOLDER / "launch.sh", "train.py"],
        env={**os.environ, "PATH": path, "NODES": "2"},
        capture_output=True,
        text=True,
    )
    assert result.returncode and "HEAD: the machine where the others meet" in result.stderr


@pytest.mark.parametrize("container", ["", "stable-audio-tools.sif"])
def test_slurm_starts_one_process_per_gpu(path: str, container: str) -> None:
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "8"}
    words = run("train.sbatch", *TRAINING, path=path, CONTAINER=container, BIND="/data", **slurm)
    assert words[0] == "srun"
    start = words.index("train.py")
    assert words[1:start] == (
        ["apptainer", "exec", "--nv", "--bind", "/data", container, "/opt/venv/bin/python"] if container else ["python"]
    )
    arguments = commands.parse(*commands.of_script("train.py", words[start + 1 :]))
    assert arguments is not None
    assert (arguments.num_nodes, arguments.num_gpus, arguments.num_workers, arguments.recover) == (2, 8, 7, True)


def test_slurm_asks_for_as_many_gpus_as_processes() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", (FOLDER / "train.sbatch").read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"].startswith("TERM@")


def test_the_image_becomes_a_file(path: str) -> None:
    words = run("build_apptainer.sh", "out.sif", path=path)
    assert words[:4] == ["docker", "build", "-t", "stable-audio-tools"]
    assert (ROOT / words[words.index("-f") + 1]).is_file()
    assert words[-4:] == ["apptainer", "build", "out.sif", "container/apptainer.def"]
    assert run("build_apptainer.sh", "out.sif", path=path, IMAGE="me/it:1")[-1] == "docker://me/it:1"
