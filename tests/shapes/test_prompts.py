"""The grammar and the split."""

from __future__ import annotations

import pytest

from fk_reward.shapes import (
    TASKS,
    all_prompts,
    benchmark_prompts,
    heldout_prompts,
    is_heldout,
    parse_prompt,
    train_prompts,
)


def test_sentences_are_those_of_the_design():
    texts = {prompt.text: prompt.task for prompt in all_prompts()}
    assert {
        "a photo of a circle": "single_object",
        "a photo of a circle and a star": "two_object",
        "a photo of three squares": "counting",
        "a photo of an orange circle": "colors",
        "a photo of a square left of a circle": "position",
        "a photo of a red circle and a blue square": "color_attr",
    }.items() <= texts.items()


def test_parsing_a_sentence_gives_its_prompt():
    prompts = all_prompts()
    assert [parse_prompt(prompt.text) for prompt in prompts] == list(prompts)
    assert len({prompt.text for prompt in prompts}) == len(prompts)


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a dog",
        "a photo of a circle and a circle",
        "a photo of five stars",
        "a photo of two star",
        "a photo of a orange star",
        "a red circle",
        "a photo of a red circle and a red square",
        "",
    ],
)
def test_other_sentences_raise_and_state_the_grammar(text):
    with pytest.raises(ValueError, match="a photo of a COLOR SHAPE and a COLOR SHAPE"):
        parse_prompt(text)


def test_unknown_task_and_split_raise():
    with pytest.raises(ValueError, match="single_object, two_object"):
        all_prompts("colours")
    with pytest.raises(ValueError, match="heldout, validation"):
        benchmark_prompts(3, "test")


@pytest.mark.parametrize("task", TASKS)
def test_split_is_disjoint_by_combination_and_complete(task):
    train, heldout = train_prompts(task), heldout_prompts(task)
    assert set(train) | set(heldout) == set(all_prompts(task))
    combinations = [{prompt.combination for prompt in side} for side in (train, heldout)]
    assert not combinations[0] & combinations[1]
    assert 0.15 <= len(combinations[1]) / (len(combinations[0]) + len(combinations[1])) <= 0.25


@pytest.mark.parametrize("task", ["two_object", "position", "color_attr"])
def test_both_orders_of_a_pair_fall_on_the_same_side(task):
    def sides(key):
        found = {}
        for prompt in all_prompts(task):
            found.setdefault(key(prompt), set()).add(is_heldout(prompt))
        return found.values()

    assert all(len(side) == 1 for side in sides(lambda prompt: frozenset(prompt.objects)))
    # a split by sentence, or by position in the list, would not pass
    assert any(len(side) == 2 for side in sides(lambda prompt: prompt.objects[0]))


def test_split_is_frozen():
    assert sorted(
        {prompt.combination for prompt in heldout_prompts() if prompt.task in ("counting", "single_object")}
    ) == [
        "counting: circle, circle, circle, circle",
        "counting: diamond, diamond",
        "counting: star, star, star, star",
        "counting: triangle, triangle, triangle",
        "single_object: circle",
    ]


def test_benchmark_lists_are_balanced_and_keep_to_their_side():
    for split, side in (("heldout", heldout_prompts()), ("validation", train_prompts())):
        prompts = benchmark_prompts(300, split)
        assert set(prompts) <= set(side)
        assert [prompt.task for prompt in prompts] == list(TASKS) * 50
    assert benchmark_prompts(60) == benchmark_prompts(300)[:60]
    assert set(heldout_prompts("position")) <= set(benchmark_prompts(300))
