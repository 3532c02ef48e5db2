"""The table of searches: the package's own, those of others, and a search that is written outside the package."""

import importlib
import sys
from dataclasses import dataclass

import pytest

from fk_reward import FKSteeringConfig, FKSteeringPipeline
from fk_reward.search import (
    SEARCHES,
    BestOfN,
    ChosenByCall,
    Pruning,
    SearchConfig,
    SearchLoadError,
    StartSearch,
    load_search,
    search_class,
    search_fields,
)
from fk_reward.search.feynman_kac import PAPER
from fk_reward.search.registry import search_name, settings_of
from tests import tiny
from tests.repository.layout import ROOT


def redness(images, prompts):
    return images[:, 0].float().mean(dim=(1, 2))


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution with these entry points, for one test."""

    def install(entry_points, name="searches-of-others"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}" for key, value in entry_points.items()]
        (folder / "entry_points.txt").write_text("[fk_reward.searches]\n" + "\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    return install


@pytest.mark.parametrize("name", sorted(SEARCHES))
def test_every_search_makes_a_population(name):
    asked = load_search(name)
    assert isinstance(asked, SearchConfig)
    config = asked.for_call(1) if isinstance(asked, ChosenByCall) else asked
    num_groups = 1 if getattr(config, "one_prompt", False) else 2
    population = config.population(num_groups)
    assert population.num_groups == num_groups
    assert population.num_particles <= config.num_particles <= population.max_particles
    forecast = population.forecast(20)
    if isinstance(config, StartSearch):
        assert len(forecast.steps) >= 20, "of all passes together"
    else:
        assert (len(forecast.steps), population.num_particles) == (20, config.num_particles)
        # a step that is drawn again is scored again
        assert len(forecast.scorings) - forecast.extra_steps == len(population.scoring_steps(20))
    assert max(forecast.steps) <= population.max_particles
    described = "".join(base.__doc__ or "" for base in type(asked).__mro__)
    assert all(field in described for field in search_fields(name)), "every field is documented"
    assert settings_of(asked)["num_particles"] == asked.num_particles


def test_a_name_a_config_and_a_preset():
    assert load_search("fk", num_particles=3) == FKSteeringConfig(num_particles=3)
    assert load_search("fk-paper") == PAPER != FKSteeringConfig()
    assert load_search(Pruning(), keep=(3, 2)).keep == (3, 2)
    assert (search_class("fk-paper"), search_class("best-of-n")) == (FKSteeringConfig, BestOfN)
    assert list(search_fields("best-of-n")) == ["num_particles", "abstain", "selection", "diversity_weight"]
    assert (search_name(BestOfN()), search_name(FKSteeringConfig(num_particles=2))) == ("best-of-n", "fk")


@pytest.mark.parametrize(
    ("search", "settings", "error", "message"),
    [
        (
            "best-of-m",
            {},
            ValueError,
            "Unknown search 'best-of-m'. Did you mean 'best-of-n'.*, draft-refine, fk",
        ),
        ("fk", {"num_particle": 2}, TypeError, "'num_particle' is no setting of FKSteeringConfig. Did you mean 'num_p"),
        (BestOfN, {}, TypeError, r"got the class BestOfN: write BestOfN\(...\)"),
        (3, {}, TypeError, "search should be a name .* or a config such as Pruning"),
        (object(), {}, TypeError, "got object"),
    ],
)
def test_what_is_no_search(search, settings, error, message):
    with pytest.raises(error, match=message):
        load_search(search, **settings)


def test_a_broken_registration_breaks_only_itself(installed):
    installed({"broken": "no_such_module:Search", "number": "math:pi", "other": "fk_reward.search.pruning:Pruning"})
    assert {"broken", "number", "other", "fk"} <= set(SEARCHES)
    with pytest.raises(SearchLoadError, match="'broken' of package 'searches-of-others' .* cannot be imported"):
        load_search("broken")
    with pytest.raises(SearchLoadError, match="'number' .* should be a dataclass with a method `population`"):
        load_search("number")
    assert load_search("other") == Pruning()


def test_a_name_of_the_package_wins(installed, caplog):
    installed({"fk": "fk_reward.search.pruning:Pruning"})
    assert load_search("fk") == FKSteeringConfig()
    assert "Two searches are called 'fk'" in caplog.text


def test_a_search_written_outside_the_package_runs_by_its_name(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "custom_search", raising=False)
    installed({"tournament": "custom_search:Tournament"})
    pipe = FKSteeringPipeline(tiny.make_sd(), reward=redness, search="tournament")
    pipe.set_progress_bar_config(disable=True)
    out = pipe(["a star", "a square"], num_particles=5, num_inference_steps=5, num_images_per_prompt=2)
    assert [step.num_particles for step in out.trace.steps] == [5, 3, 2]
    assert (out.trace.search, out.trace.config["num_particles"]) == ("tournament", 5)
    assert out.trace.steps[0].ancestors.shape == (2, 3)
    short = pipe("a star", num_particles=5, num_inference_steps=1, rounds=(0.4, 0.6, 1.0))
    assert [step.num_particles for step in short.trace.steps] == [5, 3]


def test_a_broken_registration_is_among_the_names(installed):
    installed({"broken": "no_such_module:Search"})
    assert "broken" in SEARCHES
    assert "none" not in SEARCHES


@pytest.mark.parametrize("name", ["Fk", "FK", "Best_of_N"])
def test_a_name_in_other_letters_gets_a_hint(name):
    with pytest.raises(ValueError, match="Unknown search .* Did you mean '(fk|best-of-n)'"):
        load_search(name)


def test_settings_are_plain_data_to_any_depth():
    @dataclass(frozen=True)
    class Nested(BestOfN):
        pairs: tuple = ((1, 2), {"a": (3,)})

    assert settings_of(Nested())["pairs"] == [[1, 2], {"a": [3]}]


class TestPipeline:
    """`pipe(prompt, search=...)`."""

    @pytest.fixture
    def pipe(self):
        pipe = FKSteeringPipeline(tiny.make_sd(), reward=redness)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def test_both_words_together_raise(self, pipe):
        with pytest.raises(TypeError, match="Pass search or steering, not both"):
            pipe("a star", search="fk", steering=FKSteeringConfig())
        with pytest.raises(TypeError, match="Pass search or steering, not both"):
            FKSteeringPipeline(pipe.pipe, reward=redness, search="fk", steering=FKSteeringConfig())

    def test_an_unknown_keyword_is_told_with_the_settings_of_this_search(self, pipe):
        with pytest.raises(TypeError, match="neither of StableDiffusionPipeline nor of Pruning or BatchSizes.*keep"):
            pipe("a star", search="pruning", keeps=(1,))
        with pytest.raises(TypeError, match="neither of StableDiffusionPipeline nor of BestOfN"):
            pipe("a star", search="best-of-n", reward_scale=3.0)

    def test_an_unknown_search_raises_before_anything_runs(self, pipe):
        with pytest.raises(ValueError, match="Unknown search 'prune'. Did you mean 'pruning'"):
            pipe("a star", search="prune")

    def test_more_images_than_are_finished(self, pipe):
        with pytest.raises(ValueError, match=r"in \[1, 2\], got 3; Pruning finishes 2 particles of a prompt"):
            pipe("a star", search="pruning", num_particles=4, keep=(3, 2), num_images_per_prompt=3)

    def test_the_default_may_be_any_search(self, pipe):
        pipe.search = Pruning(num_particles=3, keep=(2,), at=(0.5,))
        assert pipe.steering is pipe.search
        assert "search=Pruning" in repr(pipe)
        out = pipe("a star", keep=(1,), num_inference_steps=4)
        assert [step.num_particles for step in out.trace.steps] == [3, 1]
        with pytest.raises(AttributeError, match="pipe.search"):
            pipe.keep = (1,)
        pipe.search = "fk"
        assert pipe.search == FKSteeringConfig()
        with pytest.raises(ValueError, match="Unknown search"):
            pipe.search = "none"

    def test_a_call_with_a_name_does_not_take_the_settings_of_the_pipeline(self, pipe):
        pipe.search = FKSteeringConfig(num_particles=2, abstain=True)
        out = pipe("a star", search="best-of-n", num_inference_steps=2)
        assert (out.trace.num_particles, out.trace.config["abstain"]) == (4, False)
