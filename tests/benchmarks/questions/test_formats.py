"""The public formats on hand-made files: what is read, and what is refused with its place."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest

from fk_reward.benchmarks.questions.atoms import Atom
from fk_reward.benchmarks.questions.formats import (
    compbench_task,
    dpg_task,
    genai_task,
    geneval2_task,
    own_task,
    read_compbench,
    read_dpg,
    read_genai,
    read_unigenbench,
    unigenbench_task,
)
from fk_reward.benchmarks.task import TaskOptions

DPG_COLUMNS = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple"),
    "question_natural_language",
)


def write_csv(path, header, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_dpg(tmp_path, *, dependency="1", text="A hat, on a chair."):
    first = ("p1", "A hat, on a chair.", "", "1", "0", "entity", "whole", "entity - whole (hat)", "Is there a hat?")
    second = ("p1", text, "", "2", dependency, "", "", "relation - spatial (hat, chair, on)", "Is it on a chair?")
    other = ("p2", "a cup", "", "1", "0", "", "", "global - (cup)", "Is there a cup?")
    return write_csv(tmp_path / "dpg_bench.csv", DPG_COLUMNS, first, second, other)


def test_dpg(tmp_path):
    first, second = read_dpg(write_dpg(tmp_path))
    assert (first["prompt"], first["id"], second["id"]) == ("A hat, on a chair.", "p1", "p2")
    assert [Atom.of(fields) for fields in first["atoms"]] == [
        Atom("Is there a hat?", "Yes", ("entity", "entity - whole"), 1, (0,)),
        Atom("Is it on a chair?", "Yes", ("relation", "relation - spatial"), 2, (1,)),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dependency": "x"}, "dpg_bench.csv:2: proposition_id and dependency"),
        ({"dependency": "7"}, "question 2 depends on 7"),
        ({"text": "another"}, "'p1' has several prompts"),
    ],
)
def test_dpg_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        read_dpg(write_dpg(tmp_path, **options))


def test_csv_refused(tmp_path):
    path = tmp_path / "x.csv"
    for content, message in (
        ("item_id,text\n1,a\n", "no column 'proposition_id'; it has item_id, text"),
        (",".join(DPG_COLUMNS) + "\n", "has no rows"),
        (",".join(DPG_COLUMNS) + "\n1,2\n", "not as many fields"),
        (",".join(DPG_COLUMNS) + '\n"a"b\n', "no CSV"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_dpg(path)


def write_genai(folder, *, skills):
    models = {"DALLE_3": [5, 4, 5]}
    prompts = {"00000": {"prompt": "two cups", "models": models}, "00007": {"prompt": "a hat", "models": models}}
    (folder / "genai_image.json").write_text(json.dumps(prompts))
    (folder / "genai_skills.json").write_text(json.dumps(skills))
    return folder / "genai_image.json"


def test_genai(tmp_path):
    path = write_genai(tmp_path, skills={"counting": [0], "advanced": [0], "basic": [7]})
    first, second = read_genai(path)
    assert (first["tag"], first["groups"]) == ("advanced", ["counting", "advanced"])
    assert second["tag"] == "basic"
    assert first["atoms"][0]["question"] == 'Does this figure show "two cups"? Please answer yes or no.'


def test_genai_as_text_with_skills_elsewhere(tmp_path):
    (tmp_path / "prompts.txt").write_text("a hat\ntwo cups\n")
    (tmp_path / "skills.json").write_text('{"counting": ["1"]}')
    first, second = read_genai(tmp_path / "prompts.txt", tmp_path / "skills.json")
    assert (first["tag"], first["groups"], second["groups"]) == ("untagged", [], ["counting"])


def test_genai_refused(tmp_path):
    with pytest.raises(ValueError, match="'counting' names the prompt 1, which is not there"):
        read_genai(write_genai(tmp_path, skills={"counting": [1]}))
    path = tmp_path / "genai_image.json"
    for content, message in (('["a"]', "should map indices"), ('{"0": "a"}', "an object with a prompt"), ("{}", "map")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_genai(path)


def unigen_row(**changes):
    details = {
        "Primary Categories": "Art",
        "Testpoints": ["Attribute - Color", "Style"],
        "Testpoint Description": ["a green hat", "ink drawing"],
    }
    return json.dumps({**details, **changes}, ensure_ascii=False)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_unigenbench(tmp_path, language):
    header = ("index", f"prompt_{language}", f"sub_dims_{language}")
    path = write_csv(tmp_path / "prompts.csv", header, ("0", "a green hat, drawn in ink", unigen_row()))
    (record,) = read_unigenbench(path)
    assert (record["prompt"], record["tag"]) == ("a green hat, drawn in ink", "Art")
    assert [atom["skills"] for atom in record["atoms"]] == [["Attribute", "Attribute - Color"], ["Style"]]
    assert '"a green hat" (Attribute - Color)' in record["atoms"][0]["question"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (unigen_row(Testpoints=["Style"]), "lists of one length"),
        (unigen_row(Testpoints=["Style", 3]), "a text is missing"),
        ("{}", "has no 'Testpoints'"),
        ("[]", "expected a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_unigenbench_refused(tmp_path, text, message):
    path = write_csv(tmp_path / "prompts.csv", ("index", "prompt_en", "sub_dims_en"), ("0", "a hat", text))
    with pytest.raises(ValueError, match=message) as raised:
        read_unigenbench(path)
    assert "prompts.csv:1" in str(raised.value)


def test_compbench_of_a_folder(tmp_path):
    (tmp_path / "color_val.txt").write_text("a green hat and a blue cup\nThe red hat and the tall lamp.\n")
    (tmp_path / "spatial_val.txt").write_text("a hat on a chair\n")
    (tmp_path / "color_train.txt").write_text("not of the benchmark\n")
    records = read_compbench(tmp_path)
    assert Counter(record["tag"] for record in records) == {"color": 2, "spatial": 1}
    assert [[atom["question"] for atom in record["atoms"]] for record in records] == [
        ["a green hat?", "a blue cup?"],
        ["The red hat?", "the tall lamp?"],
        ['Does this image show "a hat on a chair"?'],
    ]


def test_compbench_phrases_from_a_file(tmp_path):
    prompt = "A bathroom with white tile and a beige toilet."
    (tmp_path / "texture_val.txt").write_text(prompt + "\n")
    with pytest.raises(ValueError, match=r"texture_val\.txt:1: .*name a file of them, --questions"):
        read_compbench(tmp_path / "texture_val.txt")
    phrases = tmp_path / "phrases.jsonl"
    phrases.write_text(json.dumps({"prompt": prompt, "phrases": ["A bathroom", "white tile", "a beige toilet"]}))
    (record,) = read_compbench(tmp_path / "texture_val.txt", phrases)
    assert [atom["question"] for atom in record["atoms"]] == ["A bathroom?", "white tile?", "a beige toilet?"]
    phrases.write_text(json.dumps({"prompt": prompt, "phrases": "white tile"}))
    with pytest.raises(ValueError, match="a list of texts"):
        read_compbench(tmp_path / "texture_val.txt", phrases)


@pytest.mark.parametrize(
    "prompt",
    ["a stop sign and red white line", "a hat on a chair", "a black, white and gold vase", "a cat and a dog and a cow"],
)
def test_prompts_of_another_form_are_not_taken_apart(tmp_path, prompt):
    (tmp_path / "color_val.txt").write_text(prompt + "\n")
    with pytest.raises(ValueError, match="has no phrases"):
        read_compbench(tmp_path)


def test_compbench_without_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"color_val\.txt"):
        read_compbench(tmp_path)


@pytest.mark.parametrize("task", [geneval2_task, dpg_task, genai_task, unigenbench_task, compbench_task, own_task])
def test_without_a_file_the_source_is_named(task):
    with pytest.raises(ValueError, match=r"--prompts .*(from http|a prompt a line)"):
        task(TaskOptions())


def test_rules_and_judges_of_the_tasks(tmp_path):
    write_dpg(tmp_path)
    write_genai(tmp_path, skills={})
    (tmp_path / "color_val.txt").write_text("a green hat and a blue cup\n")
    header = ("index", "prompt_en", "sub_dims_en")
    write_csv(tmp_path / "test_prompts_en.csv", header, ("0", "a hat", unigen_row()))
    rules = {dpg_task: "dpg", genai_task: "vqascore", unigenbench_task: "share", compbench_task: "product"}
    for make, rule in rules.items():
        task = make(TaskOptions(prompts=tmp_path, judge="verifier"))
        judge = task.judge("cpu")
        assert judge.identity["rule"] == rule
        assert len(task.samples) >= 1
