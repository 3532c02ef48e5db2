"""Ancestry as it is drawn while a run goes on."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

from fk_reward.sampling.trace import TraceStep
from fk_reward.ui.lineage import best_line, lineage_svg, survivors

SVG = "{http://www.w3.org/2000/svg}"


def step(number, rewards, ancestors=None, *, final=False, prompts=1):
    rewards = torch.tensor([rewards] * prompts)
    return TraceStep(
        number,
        float(100 - number),
        rewards,
        torch.zeros(rewards.shape, dtype=torch.float64),
        torch.full((prompts,), 2.0, dtype=torch.float64),
        None if ancestors is None else torch.tensor([ancestors] * prompts),
        thumbnails=torch.randint(0, 255, (*rewards.shape, 3, 4, 4), dtype=torch.uint8),
        final=final,
    )


RUN = (step(2, [0.1, 0.9, 0.4], [1, 1, 2]), step(5, [0.5, 0.6, 0.2], [1, 0, 1]), step(8, [0.3, 0.2, 0.7], final=True))


def parse(steps):
    return ET.fromstring(lineage_svg(steps, num_steps=8)).find(f"{SVG}svg")  # noqa: S314 (our own text)


def classes(svg, row):
    groups = svg.findall(f"{SVG}g")[row].findall(f"{SVG}g")
    return [group.get("class").split()[1:] for group in groups]


def test_the_line_of_the_best_leads_to_its_start():
    assert best_line(RUN) == [1, 1, 2]
    assert best_line(RUN[:2]) == [1, 1]
    assert best_line(RUN[:1]) == [1]


def test_who_is_dropped_fades_and_the_best_stands_out():
    svg = parse(RUN)
    assert classes(svg, 0) == [["dropped"], ["best"], []]
    assert classes(svg, 1) == [[], ["best"], ["dropped"]]
    assert classes(svg, 2) == [[], [], ["best"]]


def test_every_child_has_a_line_to_its_ancestor():
    def ends(path):
        return path.get("d")[1:].split("C")[0].split()[0], path.get("d").split()[-2]

    svg = parse(RUN)
    drawn = [ends(path) for path in svg.findall(f"{SVG}path")]
    columns = sorted({x for pair in drawn for x in pair}, key=float)
    pairs = [(columns.index(parent), columns.index(child)) for parent, child in drawn]
    assert pairs == [(1, 0), (1, 1), (2, 2), (1, 0), (0, 1), (1, 2)]
    kept = [path.get("class") for path in svg.findall(f"{SVG}path")].count("edge kept")
    assert kept == 2


def test_it_is_drawn_after_each_step():
    assert lineage_svg([], num_steps=8) == ""
    assert [len(parse(RUN[:n]).findall(f"{SVG}g")) for n in (1, 2, 3)] == [1, 2, 3]
    texts = [text.text for text in parse(RUN).iter(f"{SVG}text")]
    assert {"step 3/8", "step 6/8", "finished", "0.900"} <= set(texts)


def test_a_population_that_shrinks():
    steps = (step(1, [0.1, 0.2, 0.3, 0.4], [3, 1]), step(4, [0.5, 0.6], final=True))
    svg = parse(steps)
    assert survivors(steps[0]) == {1, 3}
    assert classes(svg, 0) == [["dropped"], ["best"], ["dropped"], []]
    assert len(svg.findall(f"{SVG}path")) == 2


def test_nothing_outside_is_referred_to():
    text = lineage_svg(RUN, num_steps=8).replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http" not in text and text.count("data:image/png;base64,") == 9


def test_one_prompt_only():
    with pytest.raises(ValueError, match="one prompt"):
        lineage_svg([step(1, [0.1, 0.2], prompts=2)], num_steps=4)
