"""The doctor: right rewards pass every probe, and each broken one is found by the probe that is meant for it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from fk_reward.planning.planned_models import is_at_hand
from fk_reward.rewards import REWARDS, CallableReward, Reward, RewardCard, load_reward
from fk_reward.rewards.doctor import PROBES, Finding, Outcome, Probe, Specimens, drawn_specimens, examine, passed
from fk_reward.rewards.doctor import examination as module
from fk_reward.rewards.doctor.dtype import converted
from fk_reward.rewards.doctor.patient import Patient
from fk_reward.shapes import Scene, SceneObject, render

EMBEDDED = (
    "shapes-clipscore",
    "shapes-imagereward",
    "shapes-llava-reward-alignment",
    "shapes-llava-reward-fidelity",
    "shapes-llava-reward-safety",
    "shapes-verifier",
)


def test_all_that_the_package_brings_are_examined():
    assert {name for name in REWARDS if is_at_hand(name)} == set(EMBEDDED)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_rewards_pass(name):
    diagnosis = examine(load_reward(name))
    assert diagnosis.is_healthy, diagnosis.to_dict()
    assert list(diagnosis.findings) == list(module.BUILT_IN_PROBES)
    asked = [f.outcome is Outcome.PASS for f in diagnosis.findings.values()]
    assert sum(asked) >= 7


@pytest.fixture(scope="module")
def clip():
    return load_reward("shapes-clipscore")


class Wrapped(Reward):
    """A CLIPScore with something wrong: `spoil` gets the reward's `score`, images and prompts."""

    accepts_uint8 = True

    def __init__(self, base, spoil, **changes):
        self.base, self.spoil = base, spoil
        self.card = dataclasses.replace(base.card, name="shapes-broken", **changes)

    def score(self, images, prompts):
        return self.spoil(self.base, images, prompts)


def float_images(images):
    return images / 255 if images.dtype == torch.uint8 else images


def nan_for_flat_images(base, images, prompts):
    contrast = float_images(images).flatten(1).std(dim=1)
    return base(images, prompts) * (contrast / contrast)


def likes_blur(base, images, prompts):
    images = float_images(images)
    detail = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
    return 0.05 * base(images, prompts) - 10 * detail


BROKEN = {
    "NaN": ("scores", lambda base, images, prompts: base(images, prompts) * torch.nan),
    "constant": ("scores", lambda base, images, prompts: base(images, prompts) * 0 + 0.5),
    "forbids": ("scores", lambda base, images, prompts: base(images, prompts) - torch.inf),
    "caption ignored": ("prompt", lambda base, images, prompts: base(images, "a photo of a red circle")),
    "captions shuffled": ("prompt", lambda base, images, prompts: base(images, [*prompts[1:], prompts[0]])),
    "upside down": ("prompt", lambda base, images, prompts: -base(images, prompts)),
    "divides by contrast": ("blank", nan_for_flat_images),
    "loves darkness": ("blank", lambda base, images, prompts: base(images, prompts) - 3 * _brightness(images)),
    "loves blur": ("blur", likes_blur),
    "batch mean": ("batch", lambda base, images, prompts: base(images, prompts) - base(images, prompts).mean()),
    "dropout": ("repeat", lambda base, images, prompts: base(images, prompts) + 0.05 * torch.randn(len(prompts))),
    "BGR of files": (
        "kinds",
        lambda base, images, prompts: base(images.flip(1) if images.dtype == torch.uint8 else images, prompts),
    ),
    "centre crop": ("crop", lambda base, images, prompts: base(images, prompts)),
    "half dot product": ("dtype", lambda base, images, prompts: (20 + base(images, prompts)).bfloat16().float()),
    "detached": ("gradient", lambda base, images, prompts: base(images, prompts).detach()),
}


def _brightness(images):
    return float_images(images).mean(dim=(1, 2, 3))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rewards_are_found(name, clip):
    probe, spoil = BROKEN[name]
    broken = Wrapped(clip, spoil, blind_to=() if probe == "crop" else ("edges",))
    broken.model = clip.model  # what a reward holds is found
    finding = examine(broken, probes={probe: PROBES[probe]}).findings[probe]
    assert finding.outcome is Outcome.FAIL, finding
    assert len(finding.remedy) > 30


def test_the_same_without_the_defect_passes(clip):
    sound = Wrapped(clip, lambda base, images, prompts: base(images, prompts), blind_to=("edges",))
    sound.model = clip.model
    assert examine(sound).failures == []


def test_without_scores_nothing_else_is_asked(clip):
    diagnosis = examine(Wrapped(clip, BROKEN["NaN"][1]))
    assert diagnosis.failures == ["scores"]
    assert {f.outcome for name, f in diagnosis.findings.items() if name != "scores"} == {Outcome.NOT_APPLICABLE}


def test_upside_down_is_said(clip):
    broken = Wrapped(clip, BROKEN["upside down"][1])
    assert "upside down" in examine(broken, probes={"prompt": PROBES["prompt"]}).findings["prompt"].remedy
    told = Wrapped(clip, BROKEN["upside down"][1], higher_is_better=False)
    assert examine(told, probes={"prompt": PROBES["prompt"]}).is_healthy


def test_an_adapter_of_zeros_is_found():
    reward = load_reward("shapes-llava-reward-alignment")
    weights = reward.model.adapters.parameters_of(reward._key(reward.dimension))
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    probes = {"adapter": PROBES["adapter"]}
    try:
        for name, weight in weights.items():
            if ".lora_B." in name:
                weight.data.zero_()
        finding = examine(reward, probes=probes).findings["adapter"]
    finally:
        for name, weight in weights.items():
            weight.data.copy_(kept[name])
    assert finding.outcome is Outcome.FAIL
    assert finding.observed.startswith("0 of 16 layers are changed")
    assert examine(reward, probes=probes).findings["adapter"].observed == "16 of 16 layers are changed."


class Overflowing(Reward):
    """Its head multiplies by more than float16 holds."""

    card = RewardCard(name="shapes-overflowing", summary="overflows", spread=1e5)
    half_dtype = torch.float16

    def __init__(self, base):
        self.base, self.model = base, base.model

    def score(self, images, prompts):
        return (1e5 * self.base(images, prompts)).to(self.model.dtype)


def test_overflow_in_half_precision_is_found_and_weights_are_put_back(clip):
    before = [(weight, weight.data_ptr(), weight.detach().clone()) for weight in clip.model.parameters()]
    finding = examine(Overflowing(clip), probes={"dtype": PROBES["dtype"]}).findings["dtype"]
    assert finding.outcome is Outcome.FAIL
    assert "float16" in finding.observed
    for weight, place, value in before:
        assert weight.data_ptr() == place
        assert torch.equal(weight, value)


def test_converted_weights_have_the_dtype_inside(clip):
    with converted(Patient(clip, drawn_specimens(64)), torch.bfloat16):
        assert clip.model.dtype == torch.bfloat16
    assert clip.model.dtype == torch.float32


def signs():
    """Scenes without the forbidden sign (a red cross) and the same with it."""
    objects = [SceneObject(shape, color, x=0.3, y=0.3, size=0.14) for shape, color in FIRST]
    sign, other = (SceneObject("cross", color, x=0.7, y=0.7, size=0.14) for color in ("red", "blue"))
    images, worse = (render([Scene((thing, last)) for thing in objects]) for last in (other, sign))
    return Specimens.of(images, [f"a photo of a {color} {shape}" for shape, color in FIRST], worse=worse)


FIRST = (("circle", "green"), ("square", "blue"), ("star", "yellow"), ("triangle", "purple"))


def test_polarity_of_a_safety_reward_by_known_images():
    probes = {"polarity": PROBES["polarity"]}
    safety = load_reward("shapes-llava-reward-safety")
    assert examine(safety, specimens=signs(), probes=probes).findings["polarity"].outcome is Outcome.PASS
    assert examine(-safety, specimens=signs(), probes=probes).failures == ["polarity"]


def test_compositions_are_examined_like_any_reward():
    diagnosis = examine(load_reward("0.5*shapes-clipscore + shapes-llava-reward-alignment"))
    assert diagnosis.is_healthy, diagnosis.to_dict()
    assert diagnosis.findings["adapter"].outcome is Outcome.PASS
    assert diagnosis.findings["dtype"].outcome is Outcome.PASS


class Ranks(Reward):
    """Compares the images of a prompt: the share of the others that are worse by another reward."""

    card = RewardCard(name="shapes-ranks", summary="rank among the images of a prompt", typical_range=(0, 1))

    def __init__(self, base):
        self.base = base

    def __call__(self, images, prompts):
        return self.score(images, prompts)

    @property
    def compares_images(self):
        return True

    def score(self, images, prompts):
        scores = self.base(images, prompts)
        same = torch.tensor([[a == b for a in prompts] for b in prompts])
        return ((scores[:, None] > scores) & same).float().sum(1) / (same.sum(1) - 1).clamp(min=1)


def test_rewards_that_compare_images_are_asked_with_both_in_a_call(clip):
    diagnosis = examine(Ranks(clip))
    assert diagnosis.findings["prompt"].outcome is Outcome.PASS
    assert diagnosis.findings["batch"].outcome is Outcome.NOT_APPLICABLE
    worse = examine(Ranks(Wrapped(clip, BROKEN["upside down"][1])))
    assert "prompt" in worse.failures


def test_a_probe_of_ones_own(clip):
    own = Probe("Is it a CLIP?", lambda patient: passed(f"{patient.reward.card.name} is."))
    assert examine(clip, probes={"own": own}).findings == {"own": Finding(Outcome.PASS, "shapes-clipscore is.")}


def test_a_probe_that_raises_is_a_failure(clip):
    def broken(patient):
        raise RuntimeError("out of memory")

    finding = examine(clip, probes={"own": Probe("Does it work?", broken)}).findings["own"]
    assert finding.outcome is Outcome.FAIL
    assert finding.observed == "RuntimeError: out of memory"


def test_probes_of_other_packages(monkeypatch):
    monkeypatch.setitem(module.BUILT_IN_PROBES, "wrong", "torch:nn")
    assert "wrong" in PROBES
    with pytest.raises(module.ProbeLoadError, match="must be a Probe, got module"):
        PROBES["wrong"]


def test_plain_data_is_json(clip):
    record = json.loads(json.dumps(examine(clip).to_dict(), allow_nan=False))
    assert record["healthy"] is True
    assert [entry["probe"] for entry in record["findings"]] == list(module.BUILT_IN_PROBES)


def test_functions_are_examined_too():
    reward = CallableReward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)), "redness")
    diagnosis = examine(reward, specimens=drawn_specimens(64))
    assert "prompt" in diagnosis.failures


@pytest.mark.parametrize(
    ("images", "prompts", "worse", "message"),
    [
        (torch.zeros(1, 3, 8, 8), ["a"], None, "at least two images"),
        (torch.zeros(2, 3, 8, 8), ["a", "a"], None, "another prompt for each"),
        (torch.zeros(2, 3, 8, 8), ["a", "b"], torch.zeros(1, 3, 8, 8), "one worse image"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], ["a", "b"], None, "one size"),
    ],
)
def test_specimens_that_are_no_good(images, prompts, worse, message):
    with pytest.raises(ValueError, match=message):
        Specimens.of(images, prompts, worse=worse)


def test_findings_need_a_remedy_where_they_failed_and_only_there():
    with pytest.raises(ValueError, match="remedy"):
        Finding(Outcome.FAIL, "it failed.")
    with pytest.raises(ValueError, match="remedy"):
        Finding(Outcome.PASS, "it passed.", "do nothing")


def test_a_layer_without_weights_has_no_dtype():
    reward = CallableReward(lambda images, prompts: images.mean(dim=(1, 2, 3)), "grey")
    reward.layer = nn.Identity()
    found = examine(reward, specimens=drawn_specimens(64), probes={"dtype": PROBES["dtype"]}).findings["dtype"]
    assert found.observed == "it has no weights."
