"""Texts to encodings by name, and pickles that cannot run code."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stable_audio_tools.core.errors import UserError
from stable_audio_tools.latents.text import encode_texts, read_pickled_encodings, read_texts
from stable_audio_tools.models.conditioners.base import Condition


def conditioner(texts: list[str]) -> Condition:
    """Token i of a text is filled with its length plus i; texts have as many tokens as words."""
    counts = [len(text.split()) for text in texts]
    tokens = torch.stack([torch.arange(4.0)[:, None].expand(4, 3) + len(text) for text in texts])
    return Condition(tokens, torch.tensor([[i < count for i in range(4)] for count in counts]))


def test_texts_of_every_format(tmp_path: Path) -> None:
    for name, content, expected in (
        ("a.txt", "rain\n\nslow drums\n", {"rain": "rain", "slow drums": "slow drums"}),
        ("a.csv", "name,prompt\nx.wav,rain\ny.wav,rain\n", {"x.wav": "rain", "y.wav": "rain"}),
        ("a.csv", 'name,prompt\nx.wav,"slow\ndrums"\n', {"x.wav": "slow\ndrums"}),
        ("a.jsonl", '{"path": "x", "prompt": "slow\u2028drums"}\n', {"x": "slow\u2028drums"}),
        ("a.jsonl", '{"path": "x", "prompt": "rain"}\n"slow"\n', {"x": "rain", "slow": "slow"}),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read_texts(tmp_path / name) == expected
    for name, content, message in (
        ("b.csv", "name,prompt\nx,\n", "entry 1 has no prompt"),
        ("b.csv", "name,prompt\nx,a\nx,b\n", "entry 2: 'x' already has another text"),
        ("b.txt", "\n", "holds no texts"),
        ("b.doc", "x", "the name must end in .txt, .csv, .jsonl"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message):
            read_texts(tmp_path / name)


def test_pooling_leaves_padding_out() -> None:
    texts = {"one": "ab cd", "two": "abc"}
    assert encode_texts(conditioner, texts, "mean")["one"].tolist() == [5.5] * 3
    assert encode_texts(conditioner, texts, "first", batch_size=1)["two"].tolist() == [3.0] * 3
    whole = encode_texts(conditioner, texts, "none")
    assert [whole[name].shape for name in texts] == [(2, 3), (1, 3)]


def test_old_pickles(tmp_path: Path) -> None:
    content = {"/a/b/x.wav": torch.ones(1, 4), "y.mp3": np.full((1, 4), 2.0, dtype=np.float32)}
    (tmp_path / "e.p").write_bytes(pickle.dumps(content))
    read = read_pickled_encodings(tmp_path / "e.p", "stem")
    assert {name: value.tolist() for name, value in read.items()} == {"x": [1.0] * 4, "y": [2.0] * 4}
    assert list(read_pickled_encodings(tmp_path / "e.p")) == list(content)
    (tmp_path / "n.p").write_bytes(pickle.dumps(np.ones((2, 1, 4))))
    assert {name: value.shape for name, value in read_pickled_encodings(tmp_path / "n.p").items()} == {
        "0": (4,),
        "1": (4,),
    }


class Harmful:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "bad.p").write_bytes(pickle.dumps({"x": Harmful(tmp_path / "made")}))
    with pytest.raises(UserError, match=r"refused, and nothing in it was run: it names (posix|nt)\.mkdir"):
        read_pickled_encodings(tmp_path / "bad.p")
    assert not (tmp_path / "made").exists()
    (tmp_path / "cut.p").write_bytes(pickle.dumps({"x": torch.ones(3)})[:40])
    with pytest.raises(UserError, match=r"cut.p: "):
        read_pickled_encodings(tmp_path / "cut.p")
    (tmp_path / "two.p").write_bytes(pickle.dumps({"a/x.wav": np.ones(2), "b/x.wav": np.ones(2)}))
    with pytest.raises(UserError, match=r"'x.wav' comes twice when only the name of the paths are kept"):
        read_pickled_encodings(tmp_path / "two.p", "name")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "e.p: holds no encodings"),
        ([], "e.p: holds no encodings"),
        ({"a": np.ones(4), "b": np.ones(5)}, "'b' is 5 wide, and 'a' 4; keep those of one encoder"),
        ({"a": np.array([1.0, np.nan])}, "'a' holds NaN or infinite values"),
        ({"a": np.ones((2, 3, 512))}, r"'a' is shaped \(2, 3, 512\); expected a vector"),
        ({"a": np.ones((1, 0))}, r"'a' is shaped \(1, 0\)"),
        ({"a": 3.0}, r"'a' is shaped \(\); expected a vector"),
        ({"a": None}, "'a' is NoneType, not an array or tensor of numbers"),
        ({"a": "rain"}, "'a' is str, not an array or tensor of numbers"),
    ],
)
def test_pickles_that_hold_no_encodings_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "e.p").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        read_pickled_encodings(tmp_path / "e.p")
