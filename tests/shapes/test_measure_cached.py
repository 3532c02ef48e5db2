"""A cached denoiser against everything computed at equal operations: sizes, choices, differences that are known."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import nn

from fk_reward.benchmarks.cache_settings import CachedDrawing
from fk_reward.models import resolve_model
from fk_reward.pipelines import CacheSchedule, cache_components
from fk_reward.planning.cache_costs import CacheCosts
from fk_reward.rewards import Reward, RewardCard
from fk_reward.search import BestOfN, FKSteeringConfig

PARTS = (("0", "attn"), ("0", "ff"))
COSTS = CacheCosts(step=100, components=dict(zip(PARTS, (30, 50), strict=True)))
STEPS = 4


def schedules(components, costs):
    """Everything computed, every k-th step, and two schedules as if they had evolved, with rewards of the evolution."""

    def known(schedule, reward):
        return schedule.replace(metrics={"share": costs.share(schedule), "reward": reward})

    every = {k: CacheSchedule.every(components, num_steps=STEPS, interval=k) for k in (1, 2, 3, 4)}
    whole, nothing = (True,) * len(components), (False,) * len(components)
    odd = tuple(bool(place % 2) for place in range(len(components)))
    even = tuple(not value for value in odd)
    first = every[1].replace(name="generation-001-00007", steps=(whole, nothing, even, even))
    second = every[1].replace(name="generation-002-00009", steps=(whole, odd, even, nothing))
    front = [known(every[1], 0.9), known(first, 0.7), known(second, 0.8), known(every[4], 0.1)]
    return front, [known(every[2], 0.5), known(every[3], 0.4)]


def write_evolved(folder, components, costs, **drawing):
    """As `fk-reward cache evolve` leaves it."""
    known = {"num_inference_steps": STEPS, "reward": "shapes-clipscore", "eta": 1.0}
    settings = asdict(CachedDrawing(**known | drawing))
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings | {"prompts": ["a photo of a star"]}))
    for kind, found in zip(("front", "every-k"), schedules(components, costs), strict=True):
        for place, schedule in enumerate(found):
            schedule.save(folder / kind / f"{place:02}-{schedule.name}.json")
    return folder


class Fake:
    """Draws nothing: a reward says how many particles there were, and takes a tenth where something was cached."""

    arguments = {"num_inference_steps": STEPS}

    def __init__(self):
        self.drawn = []

    def describe(self):
        return {"model": "fake"}

    def costs(self):
        return COSTS

    def draw(self, schedule, prompts, *, search):
        self.drawn.append((None if schedule is None else schedule.name, type(search), search.num_particles))
        reward = search.num_particles - (0.0 if schedule is None else 0.1)
        return [[Image.new("RGB", (64, 64), "white")]] * len(prompts), [[reward]] * len(prompts)


@pytest.fixture
def fake(monkeypatch):
    import measure_cached

    found = Fake()
    monkeypatch.setattr(measure_cached.CachedImages, "load", lambda *_, **__: found)
    return found


@pytest.fixture
def evolved(tmp_path):
    return write_evolved(tmp_path / "evolved", PARTS, COSTS)


def run(evolved, out, **options):
    import measure_cached

    measure_cached.main(evolved, out, **{"num_prompts": 12, "heldout": ()} | options)
    return json.loads((out / "cached.json").read_text())


def estimates(row, name):
    return row[name]["estimate"]


def test_a_cached_search_has_the_particles_that_its_schedule_pays_for(evolved, fake, tmp_path):
    """The best schedule of at most .7 takes .6 of the operations: 8 particles pay for 13."""
    found = run(evolved, tmp_path / "out", max_share=0.7)
    rows = {row["name"]: row for row in found["searches"]}
    assert {name: row["particles"] for name, row in rows.items()} == {
        **{"plain": 1, "plain, cached": 1},
        **{"best of N": 8, "best of N, cached": 13, "FK": 8, "FK, cached": 13},
    }
    assert all(row["operations"] <= 8 for row in rows.values())
    assert rows["FK, cached"]["operations"] == pytest.approx(13 * 0.6)
    assert ("generation-002-00009", FKSteeringConfig, 13) in fake.drawn, "the one of the highest reward steers"


def test_differences_are_paired(evolved, fake, tmp_path):
    found = run(evolved, tmp_path / "out", max_share=0.7)
    differences = {row["name"]: estimates(row, "reward_gain") for row in found["differences"]}
    assert differences["FK, cached - FK"] == pytest.approx(4.9)
    assert differences["FK - best of N"] == pytest.approx(0.0)
    (row,) = [row for row in found["differences"] if row["name"] == "best of N, cached - best of N"]
    assert list(row["reward_gain"].values()) == pytest.approx([4.9] * 3), "equal on every prompt"
    whole, *cached = found["schedules"]
    assert whole["share"] == 1.0 and estimates(whole, "reward") == pytest.approx(1.0)
    assert all(estimates(row, "reward_gain") == pytest.approx(-0.1) for row in cached)


def test_every_k_meets_an_evolved_schedule_of_no_more_operations(evolved, fake, tmp_path):
    """Chosen by the rewards of the evolution; where only every-4 is so cheap, it meets itself."""
    found = run(evolved, tmp_path / "out", max_share=0.7)
    assert [(row["name"], row["other"]) for row in found["front"]] == [
        ("every-2", "generation-002-00009"),
        ("every-3", "generation-002-00009"),
        ("every-4", "every-4"),
    ]
    assert all(row["other_share"] <= row["share"] for row in found["front"])
    assert estimates(found["front"][2], "reward_gain") == 0.0


def test_what_has_been_drawn_is_not_drawn_again(evolved, fake, tmp_path):
    found = run(evolved, tmp_path / "out", max_share=0.7)
    first = list(fake.drawn)
    assert len(first) == len(set(first)), "plain images with everything computed serve both tables"
    assert first.count((None, BestOfN, 1)) == 1
    assert run(evolved, tmp_path / "out", max_share=0.7) == found and fake.drawn == first
    run(evolved, tmp_path / "out", max_share=0.7, particles=4)
    assert fake.drawn[len(first) :] == [
        *((None, BestOfN, 4), ("generation-002-00009", BestOfN, 6)),
        *((None, FKSteeringConfig, 4), ("generation-002-00009", FKSteeringConfig, 6)),
    ]


def test_two_processes_share_what_is_drawn(evolved, fake, tmp_path):
    import measure_cached

    whole = run(evolved, tmp_path / "one", max_share=0.7)
    alone = list(fake.drawn)
    fake.drawn.clear()
    for shard in ("0/2", "1/2"):
        measure_cached.main(evolved, tmp_path / "two", num_prompts=12, heldout=(), max_share=0.7, shard=shard)
    assert sorted(map(str, fake.drawn)) == sorted(map(str, alone)), "each once, by one of them"
    assert not (tmp_path / "two" / "cached.json").exists()
    both = run(evolved, tmp_path / "two", max_share=0.7)
    assert len(fake.drawn) == len(alone) and both["front"] == whole["front"]
    assert both["differences"] == whole["differences"]


def test_figures_of_other_weights_are_not_taken(evolved, fake, tmp_path, monkeypatch):
    class Bias(Reward):
        card = RewardCard(name="bias", summary="the same for every image")

        def __init__(self, value):
            self.network = nn.Linear(1, 1)
            for parameter in self.network.parameters():
                nn.init.constant_(parameter, value)

        def score(self, images, prompts):
            return self.network.bias.detach().expand(len(images))

    for value, times in ((1.0, 1), (1.0, 1), (2.0, 2)):
        monkeypatch.setattr("measure_cached.load_reward", lambda name, value=value: Bias(value))
        found = run(evolved, tmp_path / "out", max_share=0.7, heldout=("bias",))
        assert all(estimates(row, "bias") == value for row in found["searches"])
        assert fake.drawn.count((None, BestOfN, 8)) == times


def test_the_tables_are_written_for_the_docs(evolved, fake, tmp_path):
    run(evolved, tmp_path / "out", max_share=0.7)
    text = (tmp_path / "out" / "cached.md").read_text()
    assert "| FK, cached | 13 | 7.80 |" in text and "+4.900 [+4.900, +4.900]" in text
    assert "12 prompts of the suite shapes" in text and "### Searches at equal operations" in text


def test_refusals(evolved, fake, tmp_path):
    with pytest.raises(ValueError, match=r"--max-share: the cheapest of the front takes 40.0%, got 30.0%"):
        run(evolved, tmp_path / "out", max_share=0.3)
    with pytest.raises(ValueError, match="evolved with eta None, and steering needs --eta 1"):
        run(write_evolved(tmp_path / "still", PARTS, COSTS, eta=None), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="settings.json"):
        run(tmp_path / "nowhere", tmp_path / "out")
    assert fake.drawn == []


def test_it_runs_on_the_embedded_model(tmp_path):
    unet = UNet2DConditionModel.from_pretrained(resolve_model("shapes-sd"), subfolder="unet")
    components = tuple(cache_components(unet))
    costs = CacheCosts(step=10 * len(components), components=dict.fromkeys(components, 5))
    found = run(write_evolved(tmp_path / "evolved", components, costs), tmp_path / "out", smoke=True, max_share=0.8)
    rows = {row["name"]: row for row in found["searches"]}
    assert rows["FK"]["particles"] == 2 and 1.0 < rows["FK, cached"]["operations"] <= 2.0
    whole = found["schedules"][0]
    assert whole["reward"] == rows["plain"]["reward"] and set(whole) == {"name", "share", "reward", "accuracy"}
    assert any(estimates(row, "reward_gain") != 0 for row in found["schedules"][1:])
