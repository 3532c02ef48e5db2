"""What best of N, or a search that cuts once, would have returned: read off images that were drawn whole.

A search that only drops particles does not change those that stay. So what it returns by any reward, at any size and
with any cut is known once the images are drawn and scored, as a mean over random subsets of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fk_reward.benchmarks.statistics import clustered_bootstrap
from fk_reward.search import Pruning
from fk_reward.search.budget import largest_within, sample_steps
from fk_reward.search.replay.policies import best_of_weights

Floats = NDArray[np.floating[Any]]
_SUBSETS = 64
_KEPT = (1, 2, 3, 4)


def best_of(scores: Floats, size: int) -> Floats:
    """`(n,)`, how often each of n images is the best of a random subset of so many, exactly.

    Example:
        >>> best_of(np.array([5.0, 1.0, 3.0]), 2).round(3).tolist()
        [0.667, 0.0, 0.333]
    """
    weights = np.empty(len(scores))
    weights[scores.argsort(kind="stable")] = best_of_weights(len(scores), size)
    return weights


def best_of_between(scores: Floats, size: float) -> Floats:
    """`best_of` of a size between two whole numbers: a straight line between theirs.

    Example:
        >>> best_of_between(np.array([5.0, 1.0]), 1.5).tolist()
        [0.75, 0.25]
    """
    lower = int(size)
    share, weights = size - lower, best_of(scores, lower)
    return weights if share == 0 else (1 - share) * weights + share * best_of(scores, lower + 1)


def best_after_cut(cut: Floats, finished: Floats, *, number: int, keep: int, seed: int = 0) -> Floats:
    """`(n,)`, how often each image is returned by a search that begins with a random subset of them and cuts once.

    Args:
        cut: `(n,)`, rewards at the cut.
        finished: `(n,)`, rewards at the end.
        number: of images in the subset, at most n.
        keep: that are finished.
        seed: of the random subsets.

    Example:
        >>> best_after_cut(np.array([3.0, 2.0, 1.0]), np.array([0.0, 5.0, 9.0]), number=3, keep=2).tolist()
        [0.0, 1.0, 0.0]
    """
    rng = np.random.default_rng(seed)
    subsets = rng.permuted(np.tile(np.arange(len(cut)), (_SUBSETS, 1)), axis=1)[:, :number]
    kept = np.take_along_axis(subsets, cut[subsets].argsort(axis=1)[:, -keep:], axis=1)
    chosen = np.take_along_axis(kept, finished[kept].argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.bincount(chosen, minlength=len(cut)) / _SUBSETS


def require_baseline(budget: int, num_steps: int, drawn: int) -> None:
    """Refuse budgets whose best of N cannot be read off.

    Args:
        budget: sample steps of a prompt.
        num_steps: of a whole image.
        drawn: images that there are.

    Raises:
        ValueError: a budget that pays for no image, or for more than there are.
    """
    if not num_steps <= budget <= drawn * num_steps:
        raise ValueError(
            f"A budget of {budget} sample steps is {budget / num_steps:g} images of {num_steps} steps; best of N is "
            f"read off {drawn} of them: take one from {num_steps} to {drawn * num_steps}."
        )


class Cut(NamedTuple):
    """Begin with some starts, score them before a step with a look-ahead, and finish the best."""

    step: int
    lookahead: int
    number: int
    keep: int


def cuts_within(budget: int, num_steps: int, *, step: int, lookahead: int, drawn: int) -> Iterator[Cut]:
    """The cuts at a place that a budget pays for, one for each number that is finished.

    Args:
        budget: sample steps of a prompt.
        num_steps: of a whole image.
        step: before which the starts are scored.
        lookahead: of the scored predictions.
        drawn: starts that there are; cuts of more are left out.

    Example:
        >>> [(cut.number, cut.keep) for cut in cuts_within(80, 20, step=8, lookahead=1, drawn=12)]
        [(7, 1), (6, 2), (5, 3)]
        >>> [(cut.number, cut.keep) for cut in cuts_within(80, 20, step=8, lookahead=3, drawn=12)]
        [(6, 1), (5, 2), (4, 3)]
    """
    price = partial(sample_steps, num_steps=num_steps, lookahead=lookahead)
    for keep in _KEPT:
        fitted = largest_within(partial(_pruning, keep, step / num_steps), price, budget)
        if fitted is not None and keep < fitted.num_particles <= drawn:
            yield Cut(step, lookahead, fitted.num_particles, keep)


def _pruning(keep: int, place: float, number: int) -> Pruning:
    return Pruning(num_particles=number, keep=(keep,), at=(place,))


@dataclass(frozen=True, eq=False)
class Starts:
    """What one reward said of the starts of a prompt, `(n,)` each.

    Attributes:
        text: the prompt.
        predicted: (step, look-ahead) -> rewards of the predictions.
        finished: rewards of the finished images.
        right: 1 where the finished image is right, else 0.
    """

    text: str
    predicted: Mapping[tuple[int, int], Floats]
    finished: Floats
    right: Floats


def best_uses(starts: Sequence[Starts], *, budget: int, num_steps: int) -> list[dict[str, Any]]:
    """For each look-ahead, the cut that gains most by the reward, against best of N for as many sample steps.

    Where to cut and how many to finish is chosen on one half of the distinct prompts and counted on the other, and the
    other way round. Gains are in standard deviations of finished images within a prompt; intervals are clustered by
    prompt.

    Args:
        starts: of each prompt.
        budget: sample steps of a prompt.
        num_steps: of a whole image.

    Raises:
        ValueError: a budget that pays for no image, or for more than there are starts.
    """
    drawn = len(starts[0].finished)
    require_baseline(budget, num_steps, drawn)
    places = list(starts[0].predicted)
    plain = _Values(starts, lambda one: best_of_between(one.finished, budget / num_steps))
    rows = []
    for lookahead in sorted({ahead for _, ahead in places}):
        cuts = [
            cut
            for step, ahead in places
            if ahead == lookahead
            for cut in cuts_within(budget, num_steps, step=step, lookahead=ahead, drawn=drawn)
        ]
        if cuts:
            rows.append({"lookahead": lookahead, **_against(plain, starts, cuts)})
    return rows


class _Values:
    """Expected values of what is returned for each prompt: the gain in reward, and the share that is right."""

    def __init__(self, starts: Sequence[Starts], weights: Callable[[Starts], Floats]) -> None:
        spread = np.sqrt(np.mean([one.finished.var(ddof=1) for one in starts]))
        chosen = [weights(one) for one in starts]
        pairs = list(zip(starts, chosen, strict=True))
        self.gain = np.array([(weight @ one.finished - one.finished.mean()) / spread for one, weight in pairs])
        self.right = np.array([weight @ one.right for one, weight in pairs])


def _against(plain: _Values, starts: Sequence[Starts], cuts: Sequence[Cut]) -> dict[str, Any]:
    texts = [one.text for one in starts]
    values = {cut: _Values(starts, partial(_returned, cut)) for cut in cuts}
    halves = _halves(texts)
    chosen = [_best_cut(values, ~half) for half in halves]
    found = {kind: np.select(halves, [getattr(values[cut], kind) for cut in chosen]) for kind in ("gain", "right")}
    row: dict[str, Any] = {"cuts": [cut._asdict() for cut in dict.fromkeys(chosen)]}
    for kind, ours in found.items():
        theirs = getattr(plain, kind)
        row |= {kind: float(ours.mean()), f"{kind}_plain": float(theirs.mean())}
        row[f"{kind}_minus"] = asdict(clustered_bootstrap((ours - theirs).tolist(), texts))
    return row


def _best_cut(values: Mapping[Cut, _Values], chosen_on: NDArray[np.bool_]) -> Cut:
    return max(values, key=lambda cut: float(values[cut].gain[chosen_on].mean()))


def _returned(cut: Cut, one: Starts) -> Floats:
    scores = one.predicted[cut.step, cut.lookahead]
    return best_after_cut(scores, one.finished, number=cut.number, keep=cut.keep)


def _halves(texts: Sequence[str]) -> list[NDArray[np.bool_]]:
    """Two masks that share no text."""
    numbers = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    odd = np.array([numbers[text] % 2 == 1 for text in texts])
    return [odd, ~odd]
