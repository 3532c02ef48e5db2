"""From costs to settings: arithmetic with round numbers, and the search against trying everything."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from fk_reward.planning import Settings
from fk_reward.planning.costs import PHASES, BatchCosts
from fk_reward.planning.memory import (
    ALLOCATOR_SHARE,
    CUDA_CONTEXT_BYTES,
    MemoryModel,
    fitting_settings,
    gigabytes,
    parse_memory,
)

GB = 10**9
WEIGHTS = {"text": 2 * GB, "denoiser": 5 * GB, "decoder": GB, "other": 0, "preview": GB // 4, "reward": 8 * GB}


def costs(text, denoise, decode, reward, *, kept=0, image_bytes=0):
    """A preview takes a sixth of the decoder's memory, and makes images of a quarter of the size."""
    graphs = (decode // 6 + reward, 4 * decode + 2 * reward)  # all that a backward pass needs
    each = (text, denoise, decode // 6, reward // 2, *graphs, decode, reward)
    activations = dict(zip(PHASES, each, strict=True))
    sizes = {"image_bytes": image_bytes, "preview_bytes": image_bytes // 4}
    return BatchCosts(activations=activations, kept=kept, flops=activations, **sizes)


@pytest.fixture
def model():
    one = costs(GB, GB, 3 * GB, 2 * GB)
    four = costs(GB, 4 * GB, 12 * GB, 8 * GB, kept=GB // 10, image_bytes=GB // 5)
    return MemoryModel(4, WEIGHTS, one, four)


@pytest.fixture
def previewed(model):
    """Four particles of which two are finished; a tiny autoencoder at the scoring steps."""
    return replace(model, previewed=True, num_finished=2)


def test_all_at_once_is_what_was_measured(model):
    denoise = model.need("denoise", Settings(4, 4, 4))
    assert (denoise.weights, denoise.kept, denoise.activations) == (16 * GB, GB // 10, 4 * GB)
    assert denoise.peak == 16 * GB + GB // 10 + 4 * GB
    above = GB // 10 + 4 * GB
    assert denoise.needed == denoise.peak + CUDA_CONTEXT_BYTES + round(ALLOCATOR_SHARE * above)


def test_a_part_at_a_time_takes_a_part(model):
    assert model.need("denoise", Settings(2, 4, 4)).activations == 2 * GB
    assert model.need("denoise", Settings(1, 4, 4)).activations == GB


def test_images_that_wait_for_the_others_are_kept(model):
    assert model.need("decode", Settings(4, 4, 4)).kept == GB // 10
    assert model.need("decode", Settings(4, 2, 4)).kept == GB // 10 + GB // 5


def test_offload_leaves_what_a_phase_needs(model):
    model_offload = Settings(4, 4, 4, model_offload=True)
    both = Settings(4, 4, 4, model_offload=True, reward_offload=True)
    resident = {phase: model.need(phase, model_offload).weights / GB for phase in model.phases}
    assert resident == {"text": 10, "denoise": 14, "decode": 9, "reward": 9}
    resident = {phase: model.need(phase, both).weights / GB for phase in model.phases}
    assert resident == {"text": 2, "denoise": 6, "decode": 1, "reward": 9}


def test_with_a_preview_the_autoencoder_decodes_what_is_finished(previewed):
    needs = {need.phase: need for need in previewed.needs(Settings(4, 4, 4))}
    assert tuple(needs) == ("text", "denoise", "preview", "preview reward", "decode", "reward")
    assert {phase: need.batch_size for phase, need in needs.items()} == dict(
        zip(previewed.phases, (4, 4, 4, 4, 2, 2), strict=True)
    )
    assert needs["preview"].activations == 2 * GB
    assert needs["decode"].activations == 6 * GB, "of two images, between 3 for one and 12 for four"
    assert needs["preview reward"].kept == GB // 10 + GB // 20 + GB // 20, "the images, and the copy of the reward"
    assert needs["reward"].kept == 2 * GB // 10 + GB // 10, "what is returned, what is scored, and the copy"
    assert all(need.weights == 16 * GB + GB // 4 for need in needs.values())


def test_without_a_preview_a_shrinking_population_is_decoded_at_its_largest(model):
    assert replace(model, num_finished=2).needs(Settings(4, 4, 4)) == model.needs(Settings(4, 4, 4))


def test_a_tiny_autoencoder_sends_no_denoiser_away(previewed):
    both = Settings(4, 4, 4, model_offload=True, reward_offload=True)
    resident = {phase: previewed.need(phase, both).weights / GB for phase in previewed.phases}
    expected = {"text": 2, "denoise": 5.25, "preview": 5.25, "preview reward": 13.25, "decode": 1.25, "reward": 8.25}
    assert resident == expected


def test_the_pipelines_own_autoencoder_does_so_at_any_resolution(previewed):
    reduced = replace(previewed, weights=WEIGHTS | {"preview": 0})
    both = Settings(4, 4, 4, model_offload=True, reward_offload=True)
    resident = {phase: reduced.need(phase, both).weights / GB for phase in previewed.phases}
    assert resident == {"text": 2, "denoise": 6, "preview": 1, "preview reward": 9, "decode": 1, "reward": 8}


def test_operations_lie_on_a_line(previewed):
    assert [previewed.flops("decode", n) / GB for n in (1, 2, 4)] == [3, 6, 12]


def fits(model, settings, memory):
    return all(need.needed <= memory for need in model.needs(settings))


@pytest.fixture
def guided(model):
    """Three particles in the graph of a guided step."""
    return replace(model, num_guided=3)


def test_a_gradient_is_one_graph_of_all_its_particles(guided):
    assert "gradient" not in replace(guided, num_guided=0).phases
    assert replace(guided, previewed=True).phases[4] == "preview gradient"
    # 4 * 3 + 2 * 2 = 16 for one and 4 * 12 + 2 * 8 = 64 for four: 48 for three
    for batch_size in (1, 4):
        need = guided.need("gradient", Settings(*(batch_size,) * 3, model_offload=True, reward_offload=True))
        assert (need.batch_size, need.activations, need.weights) == (3, 48 * GB, 9 * GB)
        assert need.kept == GB // 10
    assert fitting_settings(guided, 60 * GB, can_offload_reward=True, num_scorings=5) is None, (
        "it needs 61.8 GB at least"
    )
    assert fitting_settings(replace(guided, num_guided=0), 60 * GB, can_offload_reward=True, num_scorings=5)


@pytest.mark.parametrize("memory", (*range(6, 36), 60, 65, 70))
@pytest.mark.parametrize("kind", ["model", "previewed", "guided"])
def test_the_search_finds_what_trying_everything_finds(kind, memory, request):
    model = request.getfixturevalue(kind)
    found = fitting_settings(model, memory * GB, can_offload_reward=True, num_scorings=5)
    everything = [
        Settings(*sizes, *modes)
        for sizes in itertools.product(range(1, 5), repeat=3)
        for modes in itertools.product((False, True), repeat=2)
    ]
    fitting = [settings for settings in everything if fits(model, settings, memory * GB)]
    if not fitting:
        assert found is None
        return
    assert found in fitting
    alike = [s for s in fitting if (s.model_offload, s.reward_offload) == (found.model_offload, found.reward_offload)]
    for name in ("particle_batch_size", "decode_batch_size", "reward_batch_size"):
        assert getattr(found, name) == max(getattr(settings, name) for settings in alike)
    if found.model_offload or found.reward_offload:
        assert not any(not s.model_offload and not s.reward_offload for s in fitting), "nothing is moved without need"


def test_what_moves_less_comes_first(model):
    weights = WEIGHTS | {"reward": GB}
    small_reward = MemoryModel(4, weights, model.one, model.all)
    settings = fitting_settings(small_reward, 25 * GB // 2, can_offload_reward=True, num_scorings=5)
    assert settings is not None
    assert (settings.model_offload, settings.reward_offload) == (False, True)


def test_a_reward_that_stays_is_not_offloaded(model):
    assert fitting_settings(model, 12 * GB, can_offload_reward=False, num_scorings=5) is None
    assert fitting_settings(model, 16 * GB, can_offload_reward=False, num_scorings=5).model_offload


def test_without_a_limit_all_at_once(model):
    assert fitting_settings(model, None, can_offload_reward=True, num_scorings=5) == Settings(4, 4, 4)


def test_keywords_are_those_that_differ_from_all_at_once():
    assert Settings(4, 4, 4).keywords(4) == {}
    assert Settings(1, 4, 2).keywords(4) == {"particle_batch_size": 1, "reward_batch_size": 2}


@pytest.mark.parametrize(("text", "size"), [("24GB", 24 * GB), ("24 gib", 24 * 2**30), ("80000 MB", 80 * GB), (5, 5)])
def test_amounts(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "0GB", "24TBs", "lots"])
def test_no_amounts(text):
    with pytest.raises(ValueError, match="24GB"):
        parse_memory(text)


@pytest.mark.parametrize("text", ["24", "80.5", " 24 "])
def test_a_missing_unit_is_asked_for(text):
    with pytest.raises(ValueError, match=rf"write {text.strip()}GiB or {text.strip()}GB"):
        parse_memory(text)


@pytest.mark.parametrize(("size", "text"), [(8 * GB, "8.00 GB"), (25 * GB, "25.0 GB"), (GB // 4, "0.25 GB")])
def test_amounts_for_people(size, text):
    assert gigabytes(size) == text
