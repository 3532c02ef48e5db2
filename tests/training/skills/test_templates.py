"""Templates: every way once, different words in numbered slots, and what is refused."""

from __future__ import annotations

import itertools

import pytest

from fk_reward.training.skills import templates as module
from fk_reward.training.skills.templates import Templates

TEXT = """
# colours of two things
colour = red | orange | blue
thing = cat | owl
a photo of {a colour.1} {thing.1} and {a colour.2} {thing.2}
{thing} in {colour}, {colour}
"""


def article(word):
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def test_all_ways():
    colours, things = ("red", "orange", "blue"), ("cat", "owl")
    expected = {
        f"a photo of {article(one)} {first} and {article(other)} {second}"
        for one, other in itertools.permutations(colours, 2)
        for first, second in itertools.permutations(things, 2)
    } | {f"{thing} in {colour}, {colour}" for thing in things for colour in colours}
    templates = Templates.parse(TEXT)
    found = list(templates)
    assert len(found) == templates.num_prompts == len(expected)
    assert set(found) == expected


@pytest.mark.parametrize("listed", [1_000_000, 0])
def test_draws_are_all_ways_in_another_order(monkeypatch, listed):
    monkeypatch.setattr(module, "_LISTED", listed)
    templates = Templates.parse(TEXT)
    drawn = list(templates.draw(seed=1))
    assert sorted(drawn) == sorted(templates)
    assert drawn == list(templates.draw(seed=1)) != list(templates.draw(seed=2))


def test_many_ways_are_not_listed():
    lists = "\n".join(f"w{i} = " + " | ".join(f"{i}x{j}" for j in range(50)) for i in range(12))
    templates = Templates.parse(lists + "\n" + " ".join(f"{{w{i}}}" for i in range(12)))
    assert templates.num_prompts == 50**12
    assert len(set(itertools.islice(templates.draw(), 20))) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no sentence"),
        ("colour = red", "no sentence"),
        ("a {color} cat", "slot 'color' without a list; there are: none"),
        ("colour = red\ncolour = blue\n{colour}", "Line 2: the list colour"),
        ("colour = red | red\n{colour}", "a word twice"),
        ("colour = red\n{colour.1} {colour.2}", "2 different words"),
        ("a {cat", "a brace that is no slot"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(ValueError, match=message):
        Templates.parse(text)


def test_a_file_is_named(tmp_path):
    (tmp_path / "t.txt").write_text("{x}")
    with pytest.raises(ValueError, match=r"t\.txt: .*without a list"):
        Templates.read(tmp_path / "t.txt")
