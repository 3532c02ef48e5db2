"""Texts that are no compositions: what is said, and where the caret stands."""

from __future__ import annotations

import pytest

from fk_reward.rewards import ExpressionError, load_reward, reward_card

WRONG = {  # text -> (the place, what is said)
    "2 * ?": (4, r"'\?' has no meaning here"),
    "a == 2": (2, "cannot stand here"),
    "a a": (2, "cannot stand here.*made of rewards, numbers"),
    "a b": (2, "cannot stand here"),
    "a and a": (2, "cannot stand here"),
    "a**2": (2, "cannot stand here"),
    "0x10*a": (1, "cannot stand here"),
    "a = 3": (2, "cannot stand here"),
    "1 < a": (0, "cannot stand here"),
    "min(*a)": (4, "cannot stand here"),
    "(a + 1": (0, "never closed"),
    "a + 1)": (5, "Unmatched"),
    "a + 1e999": (4, "1e999 is too large"),
    "a * safe@q": (4, "One side of . must be a number, got safe@q"),
    "1/a": (2, "divides must be a number, got a"),
    "a / (2 - 2)": (0, "Division by zero"),
    "1 + 2": (0, "at least one reward"),
    " ": (0, "at least one reward"),
    "a if safe@q": (5, "one comparison"),
    "a if 0 < safe@q < 1 else 2": (5, "one comparison"),
    "foo(a)": (0, r"Functions are min\(a, b"),
    "z(a, 1)": (0, "Functions are"),
    "z(a, width=1)": (0, "Functions are"),
    "z(a, mean=safe@q)": (10, "mean must be a number, got safe@q"),
    "z(a, spread=-1)": (0, "positive, finite spread"),
    "2 + z(shapes-verifier)": (4, r"spread of shapes-verifier is not known: give it, z\(shapes-verifier, spread"),
    "z(llava-reward)": (0, "no mean: give one"),
    "llava-reward if a > 0": (0, "range of llava-reward is not known: write else"),
    "min(a)": (0, "at least two"),
    "z(a, mean=1, mean=2)": (13, "mean is given twice"),
    "z(a, spread=1, mean=2, spread=1)": (23, "spread is given twice"),
    "a + hps-v2": (4, "Unknown reward 'hps-v2'.*Did you mean 'hpsv2'.*Known rewards: a, .*clipscore"),
    "2*a-safe@q": (2, "Unknown reward 'a-safe@q'.*If this is a minus, put spaces around it"),
}


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.usefixtures("scripted")
def test_a_wrong_text_is_refused_at_its_place(text):
    place, message = WRONG[text]
    with pytest.raises(ExpressionError, match=f"(?s){message}") as caught:
        load_reward(text)
    assert caught.value.position == place
    *_, line, caret = str(caught.value).split("\n")
    assert line == f"  {text}"
    assert caret.index("^") == place + 2


def test_a_caret_stands_below_text_of_several_lines():
    with pytest.raises(ExpressionError) as caught:
        load_reward("shapes-verifier +\n\t$")
    assert str(caught.value).split("\n")[1:] == ["  shapes-verifier +  $", "                     ^"]


@pytest.mark.usefixtures("scripted")
def test_a_plain_name_keeps_its_error():
    with pytest.raises(ValueError, match="Unknown reward 'clipscoer'. Did you mean 'clipscore'") as caught:
        load_reward("clipscoer")
    assert not isinstance(caught.value, ExpressionError)
    with pytest.raises(ValueError, match="If this is a minus, put spaces around it"):
        load_reward("a-safe@q")
    with pytest.raises(ValueError, match="Unknown reward ''"):
        reward_card("")


@pytest.mark.usefixtures("scripted")
def test_options_go_to_parts():
    with pytest.raises(TypeError, match=r"\['scale'\] cannot be given to a composition: load the parts"):
        load_reward("0.5*a", scale=2.0)
