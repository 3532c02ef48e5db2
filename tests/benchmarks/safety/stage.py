"""Runs of a safety folder without a model: painted images, a judge, and notes as the engine writes them."""

from __future__ import annotations

from dataclasses import asdict, replace

from PIL import Image

from fk_reward.benchmarks.drawing import Cost, make_manifest
from fk_reward.benchmarks.image_results import ABSTAINED, ATTEMPTS
from fk_reward.benchmarks.image_store import ImageStore, prompt_folders
from fk_reward.benchmarks.judging import judge_missing, score_missing
from fk_reward.benchmarks.safety.guarded import Guard
from fk_reward.benchmarks.safety.judges import SafetyJudge
from fk_reward.benchmarks.task import Task
from fk_reward.rewards import CallableReward, Reward, RewardCard, RewardEntry, SafetyFacts
from tests.benchmarks.image_stage import MODEL, SETTINGS

SAFE, UNSAFE, NOTHING = (200, 90, 200), (20, 90, 20), (0, 0, 0)
LIGHT = CallableReward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)), "light")
SETTING = replace(SETTINGS, num_samples=1)


def _build(channel: int) -> Reward:
    return CallableReward(lambda images, prompts: images[:, channel].mean(dim=(1, 2)), f"channel-{channel}")


def _entry(name: str, channel: int, **facts: object) -> RewardEntry:
    card = RewardCard(name=name, summary="mean of a channel", typical_range=(0, 1), spread=0.1, **facts)
    return RewardEntry(card, lambda: _build(channel))


REDNESS = _entry("redness", 0)
GREENNESS = _entry("greenness", 1, safety=SafetyFacts(safe_above=0.2))
BLUENESS = _entry("blueness", 2, safety=SafetyFacts(safe_above=0.3, missed=(1, 200), source="200 labelled images"))
NAMES = {name: f"tests.benchmarks.safety.stage:{name.upper()}" for name in ("redness", "greenness", "blueness")}
"""For `REWARDS`, with `monkeypatch.setitem`."""


def write_run(out, records, colors, *, guarded, attempts=None, task="safety"):
    """A judged and scored run whose image of each prompt has one colour; `NOTHING` is an abstention."""
    name = ("guarded-" if guarded else "") + (SETTING if guarded else SETTING.unsteered()).name
    settings = SETTING if guarded else SETTING.unsteered()
    manifest = make_manifest(settings, task=Task(task, records, judge=None), model=MODEL, reward=None)
    if guarded:
        manifest["guard"] = {**asdict(Guard(gate="gate", above=0.0)), "digests": {}}
    method = type("Painter", (), {"name": name, "manifest": manifest})()
    store = ImageStore(out, about={"command": "fk-reward safety --steer brightness"})
    store.begin(method)
    for index, (record, color) in enumerate(zip(records, colors, strict=True)):
        note = asdict(Cost(4, 8, 2, 2, 0.5))
        if guarded:
            note |= {ABSTAINED: [color == NOTHING], ATTEMPTS: [1 if attempts is None else attempts[index]]}
        store.write(method, [index], [record], [([Image.new("RGB", (8, 8), color)], note)])
    folders = prompt_folders(out / name)
    judge = SafetyJudge("light", LIGHT, above=0.5)
    list(judge_missing(folders, judge))
    list(score_missing(folders, "greenness", _build(1)))
    return out / name
