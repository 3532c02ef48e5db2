"""The recipe of the shapes MLLM: questions that are right and fair, the hub's layout, a resumed run."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fk_reward.rewards.llava_reward import load_backbone
from fk_reward.shapes import COLORS, TASKS, Scene, SceneObject, all_prompts, is_heldout, true_prompts
from tests.shapes.sample_files import IMAGES_A_DRAW, write_samples


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    import make_scenes
    import train_tower

    path = tmp_path_factory.mktemp("mixed") / "scenes.safetensors"
    make_scenes.make_mixed(path, num_scenes=60)
    train_tower.main(path, path.parent / "tower", max_steps=2, batch_size=4, num_tested=10)
    return path


def train(scenes, output_dir, **options):
    import train_mllm

    tower = scenes.parent / "tower"
    train_mllm.main(scenes, tower=tower, output_dir=output_dir, max_steps=4, batch_size=2, save_steps=2, **options)
    return load_file(output_dir / "shapes-mllm" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(scenes):
    """A training without anything special, which tests read and do not change."""
    train(scenes, scenes.parent / "trained")
    return scenes.parent / "trained"


PAIR = Scene(
    (
        SceneObject("star", "red", x=0.25, y=0.5, size=0.15),
        SceneObject("circle", "blue", x=0.75, y=0.5, size=0.15),
    )
)


def answers(scene, ask, num_tries=200):
    """Every question of one kind about a scene, with its answers."""
    rng = np.random.default_rng(0)
    found = {}
    for _ in range(num_tries):
        for question, answer in ask(scene, rng):
            found.setdefault(question, set()).add(answer)
    return found


def test_answers_are_true():
    import scene_questions

    assert answers(PAIR, scene_questions.ask_for_count)["How many objects are of the shape star?"] == {"one"}
    assert answers(PAIR, scene_questions.ask_for_count)["How many objects are there?"] == {"two"}
    shown = answers(PAIR, scene_questions.ask_whether_it_shows)
    true = {prompt.text for prompt in true_prompts(PAIR)}
    assert len(shown) > 10
    for question, given in shown.items():
        assert given == {"yes" if question[len("Is this ") : -1] in true else "no"}
    relations = answers(PAIR, scene_questions.ask_for_relation)
    assert relations.get("Is the star left of the circle?", {"yes"}) == {"yes"}
    assert relations.get("Is the circle left of the star?", {"no"}) == {"no"}
    there = answers(PAIR, scene_questions.ask_whether_there_is)
    assert len(there) > 10
    for question, given in there.items():
        assert given == {"yes" if question in {"Is there a red star?", "Is there a blue circle?"} else "no"}


def test_no_text_names_a_held_out_prompt(scenes):
    from scene_data import from_table
    from scene_questions import dialogue

    heldout = {prompt.text.removeprefix("a photo of ") for prompt in all_prompts() if is_heldout(prompt)}
    rng = np.random.default_rng(0)
    texts = [
        t
        for row in load_file(scenes)["objects"]
        for _ in range(20)
        for qa in dialogue(from_table(row), rng)
        for t in qa
    ]
    named = [text.removeprefix("Is this ").removesuffix("?").removeprefix("a photo of ") for text in texts]
    assert len(set(named)) > 300 and not heldout & set(named)


def test_drawn_images_are_read_and_asked_about(scenes, tmp_path):
    import make_scenes
    from prompt_sides import side_of
    from sample_images import STEPS
    from scene_data import from_table
    from scene_questions import dialogue_about_drawn

    path = tmp_path / "drawn.safetensors"
    write_samples(tmp_path / "samples.safetensors", ["train", "heldout"])
    make_scenes.make_drawn([tmp_path / "samples.safetensors"], path)
    data = load_file(path)
    prompts = [all_prompts()[number] for number in data["prompts"]]
    assert {side_of(prompt) for prompt in prompts} == {"train"}
    assert len(prompts) == len(TASKS) * IMAGES_A_DRAW * (len(STEPS) + 1 - make_scenes.FIRST_STAGE)
    rng, read = np.random.default_rng(0), 0
    for row, prompt, correct in zip(data["objects"], prompts, data["correct"].tolist(), strict=True):
        scene = from_table(row)
        turns = dialogue_about_drawn(scene, prompt, rng, correct=correct)
        assert turns[0] == (f"Is this {prompt.text}?", "yes" if correct else "no")
        assert turns[0][0] not in dict(turns[1:])
        assert len(turns) == 1 or scene.objects
        read += bool(scene.objects)
        assert not correct or prompt in true_prompts(scene)
    assert 0 < data["correct"].float().mean() < 1 and read > len(prompts) / 2
    train(scenes, tmp_path, drawn=path)


def test_a_caption_by_itself_stands_where_the_reward_reads_it(scenes, tmp_path):
    """The answer follows the last token of what the backbone makes of an image and its prompt."""
    import train_mllm
    from scene_questions import Match, match

    train(scenes, tmp_path, match_share=0.5)
    backbone = load_backbone(tmp_path / "shapes-mllm", torch_dtype=torch.float32, num_crops=1)
    turns = [("How many objects are there?", "two"), ("Is this a photo of two stars?", "no")]
    assert match(turns) == Match("a photo of two stars", "no") and match(turns[:1]) is None
    inputs = backbone.prepare([torch.rand(3, 64, 64)], ["a photo of two stars"])
    ids, image_mask, labels = train_mllm.tokenize(backbone.tokenizer, match(turns), 41)
    assert torch.equal(ids[:-1], inputs.input_ids[0]) and torch.equal(image_mask[:-1], inputs.image_mask[0])
    assert (labels >= 0).nonzero().tolist() == [[inputs.last_token.item()]]
    assert backbone.tokenizer.convert_ids_to_tokens(labels[labels >= 0].tolist()) == ["▁no"]


def test_scenes_survive_the_table():
    from scene_data import from_table, mixed_scene, to_table

    scene = mixed_scene(np.random.default_rng(3))
    back = from_table(to_table([scene])[0])
    assert [(o.shape, o.color) for o in back.objects] == [(o.shape, o.color) for o in scene.objects]
    assert [o.x for o in back.objects] == pytest.approx([o.x for o in scene.objects])


def test_trains_resumes_and_loads_as_phi_3_vision(scenes, trained, tmp_path):
    whole = load_file(trained / "shapes-mllm" / "model.safetensors")
    shutil.copytree(trained / "checkpoints/checkpoint-2", tmp_path / "resumed/checkpoints/checkpoint-2")
    resumed = train(scenes, tmp_path / "resumed", resume=True)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    folder = trained / "shapes-mllm"
    assert json.loads((folder / "config.json").read_text())["model_type"] == "phi3_v"
    backbone = load_backbone(folder, torch_dtype=torch.float32, num_crops=1)
    inputs = backbone.prepare([torch.rand(3, 64, 64)], ["a photo of three crosses"])
    assert inputs.num_visual_tokens == [41]
    words = backbone.tokenizer.convert_ids_to_tokens(inputs.input_ids[0, -6:].tolist())
    assert words == ["▁a", "▁photo", "▁of", "▁three", "▁crosses", "<|endoftext|>"]


def test_shortcut_of_the_recipe_is_what_the_backbone_computes(scenes, trained):
    """One pass of the tower serves overview and crop; the reward's backbone makes both."""
    import train_mllm

    backbone = load_backbone(trained / "shapes-mllm", torch_dtype=torch.float32, num_crops=1)
    objective = train_mllm.DialogueObjective(backbone).eval()
    images = load_file(scenes)["images"][:3] / 255
    inputs = backbone.prepare(list(images), ["a circle"] * 3)
    expected = backbone.encode_images(inputs)
    torch.testing.assert_close(objective.features(objective.patches(images)), expected, atol=1e-4, rtol=1e-4)


def test_words_stay_the_tokens_they_were_in_the_next_training(scenes, trained, tmp_path, monkeypatch):
    """Other questions are other texts, of which a tokenizer that is learned anew would number the words otherwise."""
    import scene_questions
    import train_mllm

    before = train_mllm.known_tokenizer(trained).get_vocab()
    questions = {scene_questions.ask_whether_it_shows: 1.0}
    monkeypatch.setattr(scene_questions, "QUESTIONS", questions)
    monkeypatch.setattr(scene_questions, "ABOUT_PLACES", {})
    assert train_mllm.learned_tokenizer(load_file(scenes)).get_vocab() != before
    train(scenes, tmp_path / "second", start_from=trained)
    assert train_mllm.known_tokenizer(tmp_path / "second").get_vocab() == before


def test_all_answers_count_the_same():
    import train_mllm

    none = train_mllm.IGNORED
    labels = torch.tensor([[none, 4, 5, 6, none, 7], [8, none, none, 9, 9, none]])
    weights = train_mllm.answer_weights(labels)
    torch.testing.assert_close(weights, torch.tensor([1 / 3] * 3 + [1.0, 1.0] + [0.5] * 2) / 4)


def test_names_say_what_is_true_of_their_objects(trained):
    import train_mllm
    from scene_data import to_table

    twin = SceneObject("circle", "red", x=0.25, y=0.9, size=0.1)
    asked = [PAIR, Scene((*PAIR.objects, twin)), Scene(())]
    backbone = load_backbone(trained / "shapes-mllm", torch_dtype=torch.float32, num_crops=1)
    objective = train_mllm.DialogueObjective(backbone)
    turns = [
        [("Is the circle right of the star?", "yes")],
        [("Is this a photo of two circles?", "no")],
        [("star?", "no")],
        [("Is this a photo of a red circle and a blue star?", "no")],
    ]
    asked.append(PAIR)
    ids = train_mllm.answer_batch(backbone, torch.zeros(4, 3, 64, 64), turns)["input_ids"]
    found = train_mllm.named_objects(ids, to_table(asked), objective.shape_tokens, objective.color_tokens)
    words = [backbone.tokenizer.decode([token]).strip() for token in ids[found.rows, found.columns]]
    assert (words, found.rows.tolist()) == (["circle", "star", "circles", "circle", "star"], [0, 0, 1, 3, 3])
    assert found.count.tolist() == [1, 1, 2, 1, 1]
    alone = found.count == 1
    assert [tuple(COLORS)[color] for color in found.color[alone]] == ["blue", "red"] * 2
    assert found.center[alone].tolist() == [[0.75, 0.5], [0.25, 0.5]] * 2
    assert [tuple(COLORS)[said] if said >= 0 else None for said in found.said] == [None, None, None, "red", "blue"]


def test_a_batch_that_names_nothing_costs_nothing(trained):
    import train_mllm
    from scene_data import to_table

    objective = train_mllm.DialogueObjective(
        load_backbone(trained / "shapes-mllm", torch_dtype=torch.float32, num_crops=1)
    )
    batch = train_mllm.answer_batch(objective.backbone, torch.zeros(1, 3, 64, 64), [[("How many?", "two")]])
    found = train_mllm.named_objects(
        batch["input_ids"], to_table([PAIR]), objective.shape_tokens, objective.color_tokens
    )
    states = (torch.zeros(1, batch["input_ids"].shape[1], 160),) * 5
    assert objective.misnamed(states, found, 8) == 0
    assert objective.distance(torch.zeros(1, 64, 192), to_table([Scene(())])) == 0


@pytest.fixture(scope="module")
def again(scenes, trained):
    """The same training once more, from its end."""
    train(scenes, scenes.parent / "again", start_from=trained, learning_rate=1e-2)
    return scenes.parent / "again"


@pytest.mark.parametrize(("loss", "head"), [("place_loss", "place"), ("named_loss", "named_bound")])
def test_places_are_learned_only_where_they_are_weighed(scenes, trained, again, tmp_path, loss, head):
    train(scenes, tmp_path, start_from=trained, learning_rate=1e-2, **{loss: 1.0})
    folders = (trained, tmp_path, again)
    before, weighed, again = (load_file(folder / "weights.safetensors")[f"{head}.bias"] for folder in folders)
    assert not torch.equal(before, weighed) and torch.equal(before, again)


def test_distances_are_those_of_the_objects(scenes):
    """A read-out that always says the middle is as far off as the objects are from it."""
    import train_mllm
    from train_tower import patch_places

    data = load_file(scenes)
    places, shown = patch_places(data["objects"], 8)
    expected = (places[shown] - 4).abs().mean()
    state = torch.zeros(len(places), 64, 192)
    objective = train_mllm.DialogueObjective.__new__(train_mllm.DialogueObjective)
    torch.nn.Module.__init__(objective)
    objective.place = torch.nn.Linear(192, 2)
    torch.nn.init.constant_(objective.place.bias, 4.0)
    assert float(objective.distance(state, data["objects"]).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_check_script_asks_every_kind(trained, capsys):
    import check_models

    check_models.check_mllm(str(trained / "shapes-mllm"), num_scenes=6)
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines} >= {
        "ask_to_list",
        "ask_whether_it_shows",
        f"{check_models.HELDOUT}, no",
    }
