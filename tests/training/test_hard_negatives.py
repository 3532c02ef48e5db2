"""Hard negatives: one change, said truly, that is no other way of saying the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fk_reward.shapes import COLORS, SHAPES, all_prompts
from fk_reward.training import choose_hard_negatives, hard_negatives
from fk_reward.training.captions import phrases
from fk_reward.training.hard_negatives import KINDS

GRAMMAR = {prompt.text: prompt for prompt in all_prompts()}
SHAPES_CAPTIONS = [text for text, prompt in GRAMMAR.items() if prompt.task not in ("single_object", "color_attr")]


def altered(caption, *kinds, others=()):
    return {negative.altered for negative in hard_negatives(caption, others=others, kinds=kinds or KINDS)}


@pytest.mark.parametrize(
    ("caption", "kind", "others", "expected"),
    [
        (
            "a red cat and a blue dog",
            "attribute",
            ["a green bird"],
            {"a green cat and a blue dog", "a red cat and a green dog", "a blue cat and a red dog"},
        ),
        ("a big old house", "attribute", [], {"a small old house"}),
        ("a grey cat", "attribute", ["a gray cat", "an orange cat"], {"an orange cat"}),
        ("an orange cat", "attribute", ["a red cat"], {"a red cat"}),
        ("an orange", "attribute", [], set()),
        ("Red cats near a red dog", "attribute", ["a blue dog"], {"Red cats near a blue dog"}),
        ("a dog on a table", "object", [], {"a table on a dog"}),
        ("a dog on a table", "object", ["an owl"], {"a table on a dog", "an owl on a table", "a dog on an owl"}),
        ("a dog and a cat", "object", [], set()),
        ("a dog, a cat and a bird", "object", [], set()),
        ("a photo of a dog", "object", ["a painting", "an animal", "two cats"], set()),
        ("a photo of two dogs", "object", ["a photo of three cats", "a star"], {"a photo of two cats"}),
        ("two cats and three dogs", "object", [], {"two dogs and three cats"}),
        ("two cats and two dogs", "object", [], set()),
        ("two cats and three dogs", "count", ["four birds"], {
            "four cats and three dogs", "two cats and four dogs", "three cats and two dogs",
        }),
        ("two cats", "count", ["2 dogs", "three birds"], {"three cats"}),
        ("2 cats", "count", ["3 dogs"], {"3 cats"}),
        ("4 k, ultra realistic", "count", ["three birds"], set()),
        ("a cat left of a dog", "position", [], {"a cat right of a dog"}),
        ("a cat is to the left of a dog", "position", [], {"a cat is to the right of a dog"}),
        ("a cat behind a dog", "position", [], {"a cat in front of a dog"}),
        ("a circle left of a circle", "position", [], set()),
        ("a red circle left of a blue circle", "position", [], {"a red circle right of a blue circle"}),
    ],
)  # fmt: skip
def test_changes_by_hand(caption, kind, others, expected):
    assert altered(caption, kind, others=others) == expected


@pytest.mark.parametrize(
    ("caption", "exchanged"),
    [
        ("a red circle and a blue square", {"a blue circle and a red square"}),
        ("a red circle left of a blue circle", {"a blue circle left of a red circle"}),
        ("a red circle and a blue circle", set()),
        ("a red stop sign and a blue stop sign", set()),
    ],
)
def test_exchanges_are_made_only_where_they_matter(caption, exchanged):
    found = hard_negatives(caption, kinds=["attribute"])
    assert {negative.altered for negative in found if "<->" in negative.change} == exchanged


def test_the_change_is_told():
    told = {n.altered: (n.kind, n.change) for n in hard_negatives("two red cats left of a dog", others=["a blue owl"])}
    assert told["two blue cats left of a dog"] == ("attribute", "red -> blue")
    assert told["two red cats right of a dog"] == ("position", "left of -> right of")
    assert told["two red cats left of an owl"] == ("object", "dog -> owl")
    exchanged = hard_negatives("a red cat and a blue dog", kinds=["attribute"])[-1]
    assert exchanged.change == "red <-> blue"


@pytest.mark.parametrize("caption", ["", "mist", "a curious cat exploring a haunted mansion", "a", "two", "a red"])
def test_captions_without_a_rule(caption):
    assert hard_negatives(caption) == []


def mutated_words(first, second):
    """Places at which two captions differ, articles apart."""
    words = [[word for word in text.split() if word not in ("a", "an")] for text in (first, second)]
    return (
        None if len(words[0]) != len(words[1]) else [i for i, (a, b) in enumerate(zip(*words, strict=True)) if a != b]
    )


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SHAPES_CAPTIONS), st.sets(st.sampled_from(SHAPES_CAPTIONS), max_size=8))
def test_shapes_captions_stay_captions_with_another_meaning(caption, others):
    """The grammar of the shapes world is the judge of what is still one of its sentences."""
    for negative in hard_negatives(caption, others=others):
        assert 1 <= len(mutated_words(caption, negative.altered)) <= 2
        if negative.altered in GRAMMAR:
            assert GRAMMAR[negative.altered] != GRAMMAR[caption]


def test_most_shapes_captions_get_a_sentence_of_the_grammar():
    chosen = choose_hard_negatives(SHAPES_CAPTIONS, per_caption=2, seed=1)
    assert all(chosen)
    found = [negative.altered for negatives in chosen for negative in negatives]
    assert sum(text in GRAMMAR for text in found) > 0.9 * len(found)


SENTENCES = ("a {} {} and a {} {}", "a {} {} left of a {} {}", "a photo of a {} {} above a {} {}")


def same_scene(first, second):
    """Whether two sentences of `SENTENCES` describe the same scenes, told from their words alone."""
    return frame(first) == frame(second)


def frame(text):
    words = text.removeprefix("a photo of ").replace("an ", "a ").split()
    left, right = tuple(words[1:3]), tuple(words[-2:])
    relation = " ".join(words[3:-3])
    if relation == "and":
        return frozenset([(left, "x"), (right, "x")]) if left != right else (left, "two")
    if relation in ("right of", "below"):
        left, right, relation = right, left, {"right of": "left of", "below": "above"}[relation]
    return left, relation, right


def check_no_silent_no_ops(negatives_fn):
    for sentence in SENTENCES:
        for first_color, second_color in (("red", "blue"), ("red", "red"), ("orange", "blue")):
            for first, second in (("circle", "square"), ("star", "star")):
                caption = sentence.format(first_color, first, second_color, second).replace("a orange", "an orange")
                for text in negatives_fn(caption):
                    assert not same_scene(caption, text), (caption, text)


def test_no_silent_no_ops():
    check_no_silent_no_ops(lambda caption: altered(caption, others=["a green triangle"]))


def reversed_caption(caption):
    """Turns the sentence round, "and" too."""
    for relation in (" and ", " left of ", " above "):
        if relation in caption:
            first, second = caption.removeprefix("a photo of ").split(relation)
            return [f"{second}{relation}{first}"]
    return []


def flipped(caption):
    """The opposite relation, whether the sides differ or not."""
    return [caption.replace("left of", "right of")] if "left of" in caption else []


@pytest.mark.parametrize("saboteur", [reversed_caption, flipped, lambda caption: [caption]])
def test_no_ops_are_noticed(saboteur):
    with pytest.raises(AssertionError):
        check_no_silent_no_ops(saboteur)


def test_none_says_what_another_says():
    found = altered("a red circle and a blue square")
    assert found == {"a blue circle and a red square", *altered("a red circle and a blue square", "attribute")}
    assert "a red square and a blue circle" not in found


def test_words_of_the_shapes_world_are_known():
    for color in COLORS:
        (phrase,) = phrases(f"a {color} circle")
        assert [word.text for word in phrase.attributes] == [color]
    for shape in SHAPES:
        assert altered("a photo of a dog", "object", others=[f"a {shape}"]) == {f"a photo of a {shape}"}


def test_the_choice():
    captions = ["two red cats left of a dog", "a blue bird above three owls", "nothing to change"]
    chosen = choose_hard_negatives(captions, per_caption=4, seed=3)
    assert [len(negatives) for negatives in chosen] == [4, 4, 0]
    assert {negative.kind for negative in chosen[0]} == set(KINDS)
    assert all(len({negative.altered for negative in negatives}) == len(negatives) for negatives in chosen)
    assert choose_hard_negatives(captions, per_caption=4, seed=3) == chosen
    assert choose_hard_negatives(captions[::-1], per_caption=4, seed=3) == chosen[::-1]
    assert choose_hard_negatives(captions, per_caption=4, seed=4) != chosen
    assert choose_hard_negatives(captions, per_caption=100, kinds=["position"])[0][0].kind == "position"


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"attribute, object, count, position, got \['colour'\]"):
        hard_negatives("a cat", kinds=["colour"])
    with pytest.raises(ValueError, match="per_caption"):
        choose_hard_negatives(["a cat"], per_caption=0)
