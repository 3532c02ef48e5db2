"""The preferences say what the verifier says, stay on their side of the split, and do not depend on the day."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fk_reward.shapes import Scene, all_prompts, parse_prompt, render, sample_scene, shows_forbidden_sign, verify
from fk_reward.training import LabelledImage, read_preferences
from tests.shapes.sample_files import write_samples


def rows_of(path):
    return parquet.read_table(path).to_pylist()


def image(data):
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1) / 255


def prompts_of_row(row):
    texts = [row["prompt"]] if isinstance(row["prompt"], str) else row["prompt"]
    return [parse_prompt(text) for text in texts]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder / "train.safetensors", ["train", "validation"])
    write_samples(folder / "heldout.safetensors", ["heldout"])
    write_samples(folder / "early.safetensors", ["train"], deform=True)
    return folder


def make(samples, output_dir, **options):
    import make_preferences

    files = [samples / "train.safetensors", samples / "heldout.safetensors"]
    make_preferences.main(files, [samples / "early.safetensors"], output_dir, **{"scale": 0.006, **options})


@pytest.fixture(scope="module")
def made(samples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preferences")
    make(samples, folder)
    return folder


def untrue(pairs):
    """Pairs of which the verifier does not say that the chosen side is right and the rejected one wrong."""
    return [
        pair
        for pair in pairs
        if not verify(pair.chosen / 255, pair.prompt).correct
        or verify(pair.rejected / 255, pair.rejected_prompt).correct
    ]


@pytest.mark.parametrize("side", ["train", "validation", "heldout"])
@pytest.mark.parametrize("part", ["caption_pairs", "scene_pairs"])
def test_the_verifier_agrees_with_every_pair_of_alignment(part, side):
    import alignment_pairs

    pairs = getattr(alignment_pairs, part)(30, side, np.random.default_rng(5), degrade=False)
    assert len(pairs) == 30 and untrue(pairs) == []
    swapped = [
        replace(p, chosen=p.rejected, rejected=p.chosen, prompt=p.rejected_prompt, rejected_prompt=p.prompt)
        for p in pairs
    ]
    assert len(untrue(swapped)) == 30


def test_kinds_and_tasks_take_turns():
    from alignment_pairs import caption_pairs

    pairs = caption_pairs(50, "train", np.random.default_rng(0), degrade=False)
    assert Counter(pair.kind for pair in pairs) == {
        f"captions/{kind}": 10 for kind in ("count", "shape", "color", "relation", "swap")
    }
    assert len({pair.prompt.task for pair in pairs}) == 6


def test_half_of_the_rows_are_degraded_alike_on_both_sides():
    from alignment_pairs import half_degraded

    images = torch.full((40, 3, 64, 64), 200, dtype=torch.uint8)
    images[:, :, 20:40, 20:40] = 30
    first, second = half_degraded([images, images], np.random.default_rng(0))
    changed = (first != images).flatten(1).any(1)
    assert torch.equal(first, second) and 5 < changed.sum() <= 20


def test_every_file_reads_back(made):
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*.parquet"))
    heldout = [f"alignment/heldout-{part}.parquet" for part in ("captions", "predictions", "samples", "scenes")]
    labelled = [f"safety/{side}.parquet" for side in ("heldout", "train", "validation")]
    pairs = ["alignment/train.parquet", "alignment/validation.parquet", "safety/heldout-pairs.parquet"]
    pairs += [f"fidelity/{side}.parquet" for side in ("heldout", "train", "validation")]
    assert files == sorted([*heldout, *labelled, *pairs])
    for name in files:
        items = read_preferences(made / name)
        assert len(items) == len(rows_of(made / name)) > 0
        assert isinstance(items[0], LabelledImage) == (name in labelled)


def test_nothing_held_out_is_trained_on_and_validation_is_apart(made):
    from prompt_sides import side_of

    captions = {
        name: [prompts_of_row(row) for path in made.glob(f"*/{name}*.parquet") for row in rows_of(path)]
        for name in ("train", "validation", "heldout")
    }
    assert {side_of(prompt) for prompts in captions["train"] for prompt in prompts} == {"train"}
    assert {side_of(prompts[0]) for prompts in captions["validation"]} == {"validation"}
    assert {side_of(prompts[0]) for prompts in captions["heldout"]} == {"heldout"}
    assert "heldout" not in {side_of(prompt) for prompts in captions["validation"] for prompt in prompts}
    trained = {prompt.combination for prompts in captions["train"] for prompt in prompts}
    assert len(trained) > 20 and not trained & {prompts[0].combination for prompts in captions["validation"]}


def test_drawn_images_are_ranked_by_what_became_of_them(made):
    from sample_images import STEPS

    rows = [row for row in rows_of(made / "alignment" / "train.parquet") if row["kind"].startswith("predictions/")]
    assert len(rows) > 5
    for row in rows:
        both = [image(row[name]) * 255 for name in ("chosen_image", "rejected_image")]
        assert [int(image[0, -1, -1]) for image in both] == [1, 0]
        stages = {STEPS[int(image[0, 0, 0])] for image in both}
        assert stages == {int(row["kind"].split("/")[1])}


def test_at_most_so_many_pairs_come_from_a_draw():
    from alignment_pairs import MAX_PAIRS, ranked_pairs
    from sample_images import Draw

    scores = torch.tensor([1.0, 0.9, 0.5, 0.45, 0.1])
    draw = Draw(all_prompts()[0], torch.zeros(5, 9, 3, 64, 64, dtype=torch.uint8), scores == 1, scores)
    pairs = ranked_pairs(draw, np.random.default_rng(0))
    assert len(set(pairs)) == len(pairs) == MAX_PAIRS
    assert sorted(pairs[:3]) == [(0, 2), (0, 3), (0, 4)]  # right ones first; 1.0 and 0.9 are too near
    assert not {(0, 1), (2, 3)} & set(pairs) and all(scores[a] > scores[b] for a, b in pairs)


def test_a_false_caption_is_false_of_the_drawn_image(samples):
    from alignment_pairs import sample_pairs
    from sample_images import load_draws, on_side

    draws = on_side(load_draws([samples / "train.safetensors"]), "train")
    pairs = sample_pairs(20, "train", draws, np.random.default_rng(0))
    assert {pair.kind.split()[0] for pair in pairs} == {"samples/drawn", "samples/caption"}
    assert untrue(pairs) == []


@pytest.mark.parametrize("kind", ["bite", "cut", "shift", "warp"])
def test_broken_shapes_can_be_seen(kind):
    from artefacts import MIN_CHANGE, break_shape

    rng = np.random.default_rng(1)
    images = render([sample_scene(parse_prompt(f"a photo of {n}"), rng) for n in ("a star", "four circles")])
    for image in images:
        broken = break_shape(image, rng, kind)
        assert broken.shape == image.shape and 0 <= broken.min() and broken.max() <= 1
        assert (broken - image).square().mean().sqrt() >= MIN_CHANGE
    with pytest.raises(ValueError, match="does it show any object"):
        break_shape(render([Scene(())])[0], rng, kind)


def test_every_kind_of_artefact_changes_the_image(made):
    kinds = Counter(row["kind"].split("/")[0] for row in rows_of(made / "fidelity" / "train.parquet"))
    assert set(kinds) == {"blur", "noise", "broken", "vae", "early"} and max(kinds.values()) - min(kinds.values()) <= 1
    for row in rows_of(made / "fidelity" / "train.parquet"):
        change = image(row["chosen_image"]) - image(row["rejected_image"])
        assert change.square().mean().sqrt() > 0.02, row["kind"]


def test_labels_are_what_clean_images_show_and_captions_do_not_tell():
    from safety_labels import safety_labels

    rows = safety_labels(40, "train", [], np.random.default_rng(0))
    assert [row.label for row in rows] == [True, False] * 20
    clean = [row for row in rows if row.kind == "rendered/clean"]
    wrong = [row for row in clean if shows_forbidden_sign(row.image / 255) == row.label]
    assert len(clean) > 20 and wrong == []
    turned = [replace(row, label=not row.label) for row in clean]
    assert all(shows_forbidden_sign(row.image / 255) == row.label for row in turned)
    captions = [Counter(row.prompt for row in rows if row.label == label) for label in (True, False)]
    assert captions[0] == captions[1]


def test_drawn_images_are_labelled_by_what_became_of_them(samples):
    from safety_labels import drawn_twins
    from sample_images import load_draws

    twins = drawn_twins(30, load_draws([samples / "train.safetensors"]), np.random.default_rng(0))
    assert {twin.kind.split("/")[0] for twin in twins} == {"samples", "predictions"}
    for twin in twins:
        assert shows_forbidden_sign(twin.unsafe / 255) and not shows_forbidden_sign(twin.safe / 255)


def test_pairs_of_one_prompt_differ_in_the_sign(made):
    rows = rows_of(made / "safety" / "heldout-pairs.parquet")
    assert all("cross" in row["prompt"] for row in rows)
    for row in rows:
        shown = [shows_forbidden_sign(image(row[name])) for name in ("chosen_image", "rejected_image")]
        assert shown == [False, True]


def test_the_same_seed_gives_the_same_bytes(samples, made, tmp_path):
    make(samples, tmp_path / "same")
    for path in made.rglob("*.parquet"):
        assert (tmp_path / "same" / path.relative_to(made)).read_bytes() == path.read_bytes(), path.name


def test_more_fidelity_pairs_are_for_training_only(tmp_path):
    import make_preferences

    draws = {side: [] for side in make_preferences.SIDES}
    maker = make_preferences.Maker(draws, draws, folder=tmp_path, seed=0, scale=0.004, fidelity=3)
    for side in make_preferences.SIDES:
        maker.write_fidelity(side)
    sizes = {side: len(rows_of(tmp_path / "fidelity" / f"{side}.parquet")) for side in make_preferences.SIDES}
    assert sizes == {"train": 60, "validation": 2, "heldout": 2}


def test_finished_images_alone(samples, tmp_path):
    import make_preferences

    found = make_preferences.load_draws([samples / "train.safetensors"])
    draws = {side: make_preferences.on_side(found, side) for side in make_preferences.SIDES}
    clean, degraded = (
        make_preferences.Maker(draws, draws, folder=tmp_path, seed=0, scale=0.006, finished=finished)
        for finished in (True, False)
    )
    pairs = clean.all_alignment(make_preferences.FINISHED, "train", np.random.default_rng(0))
    assert {pair.kind.split("/")[0] for pair in pairs} == {"captions", "scenes", "samples"}
    first, second = (maker.alignment("scenes", 12, "train", np.random.default_rng(0)) for maker in (clean, degraded))
    unlike = [not torch.equal(one.chosen, other.chosen) for one, other in zip(first, second, strict=True)]
    assert 0 < sum(unlike) <= 6, "half of the scenes look like a prediction otherwise"


def test_another_seed_gives_other_scenes():
    from alignment_pairs import scene_pairs

    first, second = (scene_pairs(2, "train", np.random.default_rng(seed), degrade=True) for seed in (0, 1))
    assert not torch.equal(first[0].chosen, second[0].chosen)


def test_missing_sides_and_early_images_are_told(samples, tmp_path, capsys):
    import make_preferences

    with pytest.raises(ValueError, match="Nothing to write into alignment/heldout-samples"):
        make_preferences.main([samples / "train.safetensors"], None, tmp_path, scale=0.006)
    draws = {side: [] for side in make_preferences.SIDES}
    maker = make_preferences.Maker(draws, draws, folder=tmp_path, seed=0, scale=0.01)
    maker.write_fidelity("validation")
    assert "no images of an early model" in capsys.readouterr().out
    assert "early" not in {row["kind"] for row in rows_of(tmp_path / "fidelity" / "validation.parquet")}
