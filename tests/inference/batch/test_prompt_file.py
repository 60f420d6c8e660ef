"""Files of prompts: what they mean, and one sentence for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.inference.batch.outputs import collisions
from stable_audio_tools.inference.batch.plan import plan_batch
from stable_audio_tools.inference.batch.prompt_file import read_leaves
from stable_audio_tools.inference.generation.checks import condition_problems, file_seconds
from stable_audio_tools.inference.generation.facts import Input, ModelFacts
from stable_audio_tools.inference.generation.request import GenerationRequest
from stable_audio_tools.models.diffusion.objectives import V

FACTS = ModelFacts(
    "diffusion_cond",
    44100,
    window=2097152,
    objective=V,
    inputs={"prompt": Input("text"), "seconds_start": Input("number"), "seconds_total": Input("integer")},
)
GUIDE = """
music:
  drum:
    sample-1: &base
      prompt: 128 BPM tech house drum loop
      seconds_start: 0
      seconds_total: 30
    sample-2:
      <<: *base
      steps: 5
      seed: 7
      cfg_scale: 2
      sampler: dpmpp-2m
sfx:
  sample-1: {prompt: Baby laughing, seconds_start: 0, seconds_total: 10}
"""


def write(tmp_path: Path, text: str, name: str = "prompts.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_groups_become_folders_and_leaves_have_settings_of_their_own(tmp_path: Path) -> None:
    batches = plan_batch(write(tmp_path, GUIDE), FACTS, GenerationRequest(num_samples=2, clip_length=True))
    items = {item.file: item for batch in batches for item in batch}
    assert sorted(items) == [
        "music/drum/sample-1_item-1.wav",
        "music/drum/sample-1_item-2.wav",
        "music/drum/sample-2_item-1.wav",
        "music/drum/sample-2_item-2.wav",
        "sfx/sample-1_item-1.wav",
        "sfx/sample-1_item-2.wav",
    ]
    plain, own = items["music/drum/sample-1_item-1.wav"], items["music/drum/sample-2_item-2.wav"]
    assert (
        plain.request.conditions
        == own.request.conditions
        == {
            "prompt": "128 BPM tech house drum loop",
            "seconds_start": 0,
            "seconds_total": 30,
        }
    )
    assert (plain.request.steps, plain.request.cfg_scale, plain.request.sampler_type) == (100, 7.0, "dpmpp-3m-sde")
    assert (own.request.steps, own.request.cfg_scale, own.request.sampler_type, own.request.seed) == (
        5,
        2,
        "dpmpp-2m",
        8,
    )
    assert file_seconds(plain.request) == 30 and file_seconds(items["sfx/sample-1_item-1.wav"].request) == 10
    assert len({item.request.seed for item in items.values()}) == 6


def test_seeds_hang_on_names_not_on_neighbours(tmp_path: Path) -> None:
    def seeds(text: str, seed: int) -> dict[str, int | None]:
        batches = plan_batch(write(tmp_path, text), FACTS, GenerationRequest(seed=seed))
        return {item.file: item.request.seed for batch in batches for item in batch}

    leaf = "{prompt: x, seconds_start: 0, seconds_total: 1}"
    alone, more = seeds(f"b: {leaf}", 1), seeds(f"a: {leaf}\nb: {leaf}", 1)
    assert alone["b_item-1.wav"] == more["b_item-1.wav"] != more["a_item-1.wav"]
    assert alone != seeds(f"b: {leaf}", 2)
    assert seeds(f"b: {leaf}", -1) == {"b_item-1.wav": -1}


def test_csv_and_jsonl_mean_the_same(tmp_path: Path) -> None:
    csv = write(
        tmp_path,
        'name,prompt,seconds_start,seconds_total,steps,negative_prompt\nmusic/a,"140, loud",0,30,5,\n,12,0,1,,noise\n',
        "prompts.csv",
    )
    jsonl = write(
        tmp_path,
        '{"name": "music/a", "prompt": "140, loud", "seconds_start": 0, "seconds_total": 30, "steps": 5}\n\n'
        '{"prompt": "12", "seconds_start": 0, "seconds_total": 1, "negative_prompt": "noise"}\n',
        "prompts.jsonl",
    )
    from_csv, from_jsonl = (plan_batch(path, FACTS) for path in (csv, jsonl))
    assert from_csv == from_jsonl
    assert [item.file for batch in from_csv for item in batch] == ["music/a_item-1.wav", "2_item-1.wav"]


def test_json_is_read_as_json(tmp_path: Path) -> None:
    """A character beyond U+FFFF is two escapes, tabs indent, 3e-1 is a number, and `<<` is a name."""
    tree = {"a\U0001f600": {"prompt": "rain \U0001f600", "seconds_start": 0.5}, "<<": {"prompt": "x"}}
    text = json.dumps(tree, indent="\t").replace("0.5", "3e-1")
    assert "\\ud83d\\ude00" in text
    first, second = read_leaves(write(tmp_path, text, "p.json"))
    assert (first.name, first.values) == ("a\U0001f600", {"prompt": "rain \U0001f600", "seconds_start": 0.3})
    assert (second.name, second.values) == ("<<", {"prompt": "x"})


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b"])
def test_only_line_feeds_end_a_line(tmp_path: Path, separator: str) -> None:
    text = f"rain{separator}wind"
    line = json.dumps({"prompt": text}, ensure_ascii=False)
    for name, content in (("p.jsonl", f"{line}\n{line}\n"), ("p.csv", f"prompt\n{text}\n{text}\n")):
        requests = read_leaves(write(tmp_path, content, name))
        assert [(request.name, request.values) for request in requests] == [(n, {"prompt": text}) for n in "12"]
    assert requests[1].where == "line 3"


def test_a_merge_may_take_from_a_merge(tmp_path: Path) -> None:
    text = "base: &b {prompt: x}\na:\n  c: &c {<<: *b, prompt: y}\nd: {<<: *c, steps: 3}"
    values = {request.name: request.values for request in read_leaves(write(tmp_path, text))}
    assert values == {"base": {"prompt": "x"}, "a/c": {"prompt": "y"}, "d": {"prompt": "y", "steps": 3}}


def test_many_aliases_are_looked_at_once(tmp_path: Path) -> None:
    """Thirty lines of YAML that stand for 2^30 texts."""
    lists = ", ".join(f"&l{n} [*l{n - 1}, *l{n - 1}]" for n in range(1, 30))
    (request,) = read_leaves(write(tmp_path, f"a: {{prompt: x, inpaint: [&l0 [x], {lists}]}}"))
    assert len(request.values["inpaint"]) == 30


def test_items_with_other_settings_go_into_other_batches_of_even_size(tmp_path: Path) -> None:
    leaf = "{prompt: x, seconds_start: 0, seconds_total: 1%s}"
    text = "\n".join(f"n{index}: {leaf % (', steps: 9' if index == 3 else '')}" for index in range(10))
    batches = plan_batch(write(tmp_path, text), FACTS, batch_size=8)
    # Guidance halves what goes through at once; nine equal items make three batches of three, not 4 + 4 + 1.
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]
    unguided = plan_batch(write(tmp_path, text), FACTS, GenerationRequest(cfg_scale=1), 8)
    assert [len(batch) for batch in unguided] == [4, 5, 1]


GOOD = "{prompt: x, seconds_start: 0, seconds_total: 1}"
MISTAKES = {
    f"../../x: {GOOD}": r"'\.\./\.\./x' leads out of its folder",
    f"a: {{'..': {GOOD}}}": r"'a/\.\.' leads out",
    f"/etc/x: {GOOD}": "'/etc/x' is an absolute path",
    f"'C:x': {GOOD}": "absolute path",
    f"~x: {GOOD}": "absolute path",
    f"'a\\b': {GOOD}": "backslash",
    f'"a\\0b": {GOOD}': "control character",
    f"a//b: {GOOD}": "empty part",
    f"'': {GOOD}": "the name is empty",
    f"{'x' * 300}: {GOOD}": "longer than 200 bytes",
    f"a: {GOOD}\na: {GOOD}": r"prompts\.yaml:2:1: 'a' is given twice",
    f"a/b: {GOOD}\na: {{b: {GOOD}}}": "a/b_item-1.wav and a/b_item-1.wav would be one file",
    f"Drum: {GOOD}\ndrum: {GOOD}": "would be one file",
    f"a_item-1.wav: {{b: {GOOD}}}\na: {GOOD}": "one the folder of the other",
    f"on: {GOOD}": "YAML reads this name as true; put it in quotes",
    "": "is empty",
    "# only a comment": "expected names with prompts",
    "- prompt: x": "expected names with prompts",
    "prompt: x\nseconds_start: 0": "the prompt has no name",
    "a:": "a: holds nothing",
    "a: {b: {prompt: }}": r"a\.b\.prompt: holds nothing",
    "a: {prompt: x, seconds_total: }": r"a\.seconds_total: has no value; write one, or remove the key",
    "a: {b: {prompt: null, seconds_total: 3}}": r"a\.b\.prompt: has no value",
    "a: x\nb: {c: {prompt: x}}": "a: expected a group",
    f"a: {{prompt: x, b: {GOOD}}}": "a: mixes the group 'b' with keys of a prompt",
    "a: {prompt: [x": r"prompts\.yaml:1:\d+: while parsing a flow sequence, expected ',' or ']'",
    "a: &x\n  b: *x": r"prompts\.yaml:1:4: contains itself through an alias; write the content out",
    "a: &x\n  b: {<<: *x}": "contains itself through an alias",
    "a: &x {prompt: x, inpaint: [*x]}": "contains itself through an alias",
    f"a: {{prompt: x, inpaint: {'[' * 70}{']' * 70}}}": r"prompts\.yaml: is nested too deeply; .* up to 64 levels",
    f"a: {{prompt: x, inpaint: {'[' * 1000}": "is nested too deeply",
    f"z: &n0 {GOOD}\n" + "\n".join(f"a{n}: &n{n} {{b: *n{n - 1}}}" for n in range(1, 300)): "is nested too deeply",
    f'"a\\ud800": {GOOD}': r"prompts\.yaml: 'a\\ud800' holds '\\ud800', half of a character; write the whole",
    'a: {b: {prompt: "x \\udc00"}}': r"a\.b\.prompt: 'x \\udc00' holds '\\udc00', half of a character",
    'a: {prompt: x, inpaint: [["\\udc00"]]}': r"a\.inpaint: '\\udc00' holds '\\udc00', half of a character",
    'a: {prompt: "\\Uffffffff"}': "not valid YAML",
    'a: {prompt: "\\U00110000"}': "not valid YAML",
    "a: {prompt: 2024-13-45}": r"prompts\.yaml:1:13: '2024-13-45' is not a valid timestamp; put it in quotes",
    "a: {prompt: !!bool x}": "'x' is not a valid bool",
    "a: {prompt: !!timestamp x}": "'x' is not a valid timestamp",
    f"a: {{prompt: x, seconds_start: 0, seconds_total: 1{'0' * 400}}}": "a.seconds_total: a number of more than 300",
    f"a: {{prompt: x, seconds_start: 0, seconds_total: 1, steps: 0x{'f' * 5000}}}": "a.steps: .* is out of range",
    f"? 0x{'f' * 5000}\n: {GOOD}": r"prompts\.yaml: a number of more than 300 digits is out of range",
    f"a: {{prompt: x, seconds_start: 0, seconds_total: 1{'0' * 5000}}}": "is not a valid int",
    f"a: {{prompt: x, seconds_start: 0, seconds_total: {2**63}}}": "seconds_total: is out of range; write a number bet",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, inpaint: [[0, .nan]]}": r"inpaint\[0\]\[1\]: expected a finite",
    "a: {promt: x, seconds_start: 0, seconds_total: 1}": r"a: promt: unknown key; did you mean 'prompt'\?",
    "a: {prompt: x, seconds_total: 1}": "seconds_start: missing; the model needs a number",
    "a: {prompt: 5, seconds_start: 0, seconds_total: 1}": "prompt: expected a text, got 5",
    "a: {prompt: no, seconds_start: 0, seconds_total: 1}": "prompt: expected a text, got false",
    "a: {prompt: x, seconds_start: .nan, seconds_total: 1}": "seconds_start: expected a number, got nan",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1.5}": "seconds_total: expected a whole number, got 1.5",
    "a: {prompt: x, seconds_start: 0, seconds_total: true}": "expected a whole number, got true",
    "a: {prompt: x, seconds_start: 0, seconds_total: 49}": "is 49 s, and the model makes at most 47.55 s",
    "a: {prompt: x, seconds_start: 9, seconds_total: 9}": "expected more than 0 seconds",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, seconds: 99}": "seconds: is 99 s",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, steps: 0}": "steps: expected at least 1, got 0",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, steps: 1000000000}": "steps: expected at most 100000",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, n_sample_per_cond: 1000000000}": "expected at most 100000",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, steps: '9'}": "steps: expected a whole number",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, seed: -2}": "seed: expected at least -1",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, sampler: euler}": "not for a model with the objective 'v'",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, sampler: dpmp-2m}": "did you mean 'dpmpp-2m'",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, init_audio: no.wav}": "init_audio: no such file '.*no.wav'",
    "a: {prompt: x, seconds_start: 0, seconds_total: 1, inpaint_audio: no.wav}": "inpaint_audio: no such file",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: repr(text[:40]))
def test_mistakes_are_told_in_a_sentence_each(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=MISTAKES[text]) as caught:
        plan_batch(path, FACTS)
    assert all(problem.startswith(str(path)) for problem in caught.value.problems)


def test_all_mistakes_of_a_file_are_told_together(tmp_path: Path) -> None:
    path = write(tmp_path, "a: {prompt: 5, seconds_start: 0, seconds_total: 1}\n../b: {prompt: x, seconds_total: 99}")
    with pytest.raises(ConfigError) as caught:
        plan_batch(path, FACTS)
    assert len(caught.value.problems) >= 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,prompt\nx,y", "the column 'prompt' is given twice"),
        ("a.csv", "prompt,\nx,y", "without a name"),
        ("a.csv", "prompt,steps\nx", ":2: has 1 cells, and the head has 2 columns"),
        ("a.csv", "prompt", "holds no prompts"),
        (
            "a.csv",
            "prompt;seconds\nx;2",
            r"a\.csv:1: found the one column 'prompt;seconds'; separate columns by commas",
        ),
        ("a.csv", "prompt\tsteps\nx\t2", "separate columns by commas, not by a tab"),
        ("a.json", '{"a": {"prompt": "x", "seconds_total": null}}', r"a\.seconds_total: has no value; write one, or"),
        ("a.jsonl", '{"prompt": "x", "seconds_total": null}', "seconds_total: has no value; write one, or remove the"),
        ("a.csv", 'prompt\n"x', "not valid CSV"),
        ("a.csv", f"prompt,steps\nx,1{'0' * 400}", "steps: expected a whole number, got '1000"),
        ("a.csv", "prompt,seconds_total\nx,2024-13-45", "seconds_total: expected a whole number, got '2024-13-45'"),
        ("a.csv", "prompt,inpaint\nx,&x [*x]", "inpaint: expected a list, got '&x"),
        ("a.csv", f"prompt,inpaint\nx,{'[' * 1000}", "inpaint: expected a list, got"),
        ("a.json", '{"a": {"prompt": "x",\n}}', r"a\.json:2:1: not valid JSON \(expecting property name"),
        ("a.json", '["x"]', "expected names with prompts below them"),
        ("a.json", '{"a": {"prompt": "x", "prompt": "y"}}', r"a\.json: 'prompt' is given twice in one object; rename"),
        ("a.json", '{"a": {"prompt": "x", "seconds": NaN}}', r"a\.json: NaN is not a number in JSON; write a finite"),
        ("a.json", '{"\\ud800": {"prompt": "x"}}', r"a\.json: '\\ud800' holds '\\ud800', half of a character"),
        ("a.json", '{"a": {"prompt": "\\ude00"}}', r"a\.json: a\.prompt: '\\ude00' holds '\\ude00', half of a char"),
        (
            "a.json",
            f'{{"a": {{"steps": -1{"0" * 5000}}}}}',
            "a.steps: a number of more than 300 digits is out of range",
        ),
        ("a.json", '{"a":' * 100_000, "is nested too deeply"),
        ("a.json", '{"a":' * 70 + "{}" + "}" * 70, "is nested too deeply"),
        ("a.jsonl", "{", ":1:2: not valid JSON"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt": "x", "prompt": "y"}', ":2: 'prompt' is given twice in one object"),
        ("a.jsonl", '{"prompt": "x", "seconds": -Infinity}', ":1: -Infinity is not a number in JSON"),
        ("a.jsonl", '{"name": "\\ud800"}', r":1: name: '\\ud800' holds '\\ud800', half of a character"),
        ("a.jsonl", "[1]", ":1: expected an object"),
        ("a.jsonl", '{"name": 3}', "name: expected a string"),
        ("a.txt", "x", "unknown format"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_batch(write(tmp_path, text, name), FACTS)


@pytest.mark.parametrize(("key", "value"), [("seconds_start", 10**400), ("seconds_total", -(2**63))])
def test_numbers_that_no_tensor_holds_are_out_of_range(key: str, value: Any) -> None:
    values = {"prompt": "x", "seconds_start": 0, "seconds_total": 1, key: value}
    (problem,) = condition_problems(values, FACTS)
    assert problem.startswith(f"{key}: is out of range; write a number between -")


def test_a_missing_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_leaves(tmp_path / "absent.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_leaves(tmp_path / "x.yaml")


def test_letters_that_file_systems_take_for_one_collide() -> None:
    composed, decomposed = "caf\u00e9.wav", "cafe\u0301.wav"
    assert list(collisions([composed, decomposed])) == [(decomposed, composed)]
    assert list(collisions(["STRASSE.wav", "straße.wav"]))
    assert not list(collisions(["a.wav", "b.wav", "a/a.wav"]))


def test_lengths_in_whole_seconds_may_end_a_little_after_the_window(tmp_path: Path) -> None:
    """Training tells seconds rounded up: a window of 47.55 s is 48 there."""
    assert plan_batch(write(tmp_path, "a: {prompt: x, seconds_start: 0, seconds_total: 48}"), FACTS)
    long = write(tmp_path, "a: {prompt: x, seconds_start: 100, seconds_total: 140}")
    assert file_seconds(plan_batch(long, FACTS, GenerationRequest(clip_length=True))[0][0].request) == 40
    part = write(tmp_path, "a: {prompt: x, seconds_start: 0, seconds_total: 180, seconds: 20}")
    assert file_seconds(plan_batch(part, FACTS)[0][0].request) == 20
    with pytest.raises(ConfigError, match="--clip-length: is 60 s"):
        plan_batch(part, FACTS, GenerationRequest(clip_length=60.0))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a:\n  prompt: x\n seconds_total: 1\n", r"prompts.yaml:3:2: is indented differently from the lines above; "),
        ("a:\n\tprompt: x\n", r"prompts.yaml:2:1: is indented by a tab; indent by spaces"),
        ("a:\n  prompt: x: y\n", r"prompts.yaml:2:12: has a second ': ' or a wrong indentation; put texts"),
    ],
)
def test_wrong_indentation_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_leaves(write(tmp_path, text))


def test_a_wrong_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GUIDE)
    common = GenerationRequest(mode="variation", audio=str(tmp_path / "none.wav"))
    with pytest.raises(ConfigError, match=r"^--audio: no such file '.*none.wav'$"):
        plan_batch(path, FACTS, common)


def test_no_group_takes_the_name_of_the_manifest(tmp_path: Path) -> None:
    path = write(tmp_path, "Manifest.jsonl:\n  a:\n    prompt: x\n    seconds_start: 0\n    seconds_total: 1\n")
    with pytest.raises(ConfigError, match=r"Manifest.jsonl/a_item-1.wav and manifest.jsonl would be one file, or"):
        plan_batch(path, FACTS)
