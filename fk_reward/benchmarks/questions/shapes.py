"""GenEval 2 in miniature: prompts of the shapes world with atoms, answered by its detector, without a download."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from fk_reward.benchmarks.questions.answerers import Answered, Asked
from fk_reward.benchmarks.questions.atoms import NUMBERS, question_record
from fk_reward.benchmarks.questions.geneval2 import atom_group, clause_atoms, plural
from fk_reward.benchmarks.questions.judge import SOFT_TIFA, QuestionJudge, Style
from fk_reward.benchmarks.task import KnownVerdict, Task, TaskOptions
from fk_reward.rewards.inputs import in_order, to_pil
from fk_reward.shapes import TASKS, DetectedObject, ShapesPrompt, all_prompts, benchmark_prompts, detect, render
from fk_reward.shapes.sampling import sample_scene, true_prompts
from fk_reward.shapes.scene import COLORS, MIN_ALIGNMENT, SHAPES, alignment
from fk_reward.shapes.verifier import on_canvas, verify

VERIFIER = "verifier"
"""Name of the answerer of this file, where a judge is named."""

_PHOTO = "a photo of "
_SHAPE, _SHAPES = "|".join(SHAPES), "|".join(map(plural, SHAPES))
_COLOR = "|".join(COLORS)
_SINGULAR = {plural(name): name for name in SHAPES} | {name: name for name in SHAPES}


class Seen(NamedTuple):
    """An image and what the detector sees in it.

    Attributes:
        pixels: (3, H, W) in [0, 1].
        objects: the detected objects.
    """

    pixels: Tensor
    objects: Sequence[DetectedObject]


def shapes_geneval2_task(options: TaskOptions) -> Task[Mapping[str, Any]]:
    """Prompts of the shapes world with GenEval 2's questions, answered by the detector of its verifier.

    Args:
        options: `num_prompts`, 60 by default.

    Example:
        >>> [record["tag"] for record in shapes_geneval2_task(TaskOptions(num_prompts=2)).samples]
        ['1 atom', '2 atoms']
    """
    count = 60 if options.num_prompts is None else options.num_prompts
    return Task("shapes-geneval2", question_records(count), lambda device: verifier_judge())


def question_records(num_prompts: int) -> tuple[dict[str, Any], ...]:
    """Held-out prompts of the shapes world with atoms, the tasks in turn.

    Args:
        num_prompts: how many; the smaller tasks repeat theirs.

    Example:
        >>> [atom["question"] for atom in question_records(1)[0]["atoms"]]
        ['How many circles are in the image?', 'Are there any circles in the image?']
    """
    return tuple(_record(prompt) for prompt in benchmark_prompts(num_prompts))


def _record(prompt: ShapesPrompt) -> dict[str, Any]:
    specs = list(dict.fromkeys(prompt.objects))
    clauses: list[dict[str, Any]] = [{"class": spec.shape, "count": prompt.objects.count(spec)} for spec in specs]
    for clause, spec in zip(clauses, specs, strict=True):
        clause |= {} if spec.color is None else {"color": spec.color}
    if prompt.relation:
        clauses[0]["position"] = (prompt.relation, 1)
    atoms = clause_atoms(clauses, exact=True)
    group = atom_group(sum(atom.answer != "one" for atom in atoms))
    return question_record(prompt.text, atoms, tag=group, groups=[group, prompt.task])


def verifier_judge(style: Style = SOFT_TIFA) -> QuestionJudge:
    """The judge of this world: questions answered by the detector, tested on rendered scenes.

    Args:
        style: how the benchmark asks and scores.
    """
    return QuestionJudge(ShapesAnswerer(), style, known=[case for task in TASKS for case in _known(task)])


def _known(task: str) -> list[KnownVerdict]:
    prompt = all_prompts(task)[0]
    scene = sample_scene(prompt, np.random.default_rng(0))
    (image,) = to_pil(render([scene]))
    wrong = next(other for other in all_prompts(task) if other not in true_prompts(scene))
    return [KnownVerdict(_record(prompt), image, True), KnownVerdict(_record(wrong), image, False)]


class ShapesAnswerer:
    """Answers questions about scenes of shapes from what the detector of the shapes world sees.

    It is certain: a probability is 1 or 0.

    Example:
        >>> blank = Image.new("RGB", (64, 64), "white")
        >>> ShapesAnswerer().answer([blank], [Asked(0, "Are there any stars in the image?", ("Yes", "yes"))])
        [Answered(probability=0.0, right=False, said='No')]
    """

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {"model": "the detector of the shapes world"}

    def answer(self, images: Sequence[Image.Image], asked: Sequence[Asked]) -> list[Answered]:
        """Answer questions.

        Args:
            images: of any size.
            asked: questions of this world; what follows a question mark does not matter.

        Raises:
            ValueError: a question of another form.
        """
        seen = [Seen(pixels, detect(on_canvas(pixels))) for pixels in in_order(list(images))]
        return [self._answer(seen[line.place], line) for line in asked]

    def _answer(self, seen: Seen, asked: Asked) -> Answered:
        for pattern, reply in _FORMS:
            if (found := re.match(pattern, asked.question)) is not None:
                said = reply(seen, *found.groups())
                right = said.lower() in {spelling.strip().lower() for spelling in asked.spellings}
                return Answered(float(right), right, said)
        raise ValueError(f"The detector of the shapes world cannot be asked {asked.question!r}.")


def _how_many(seen: Seen, shapes: str) -> str:
    count = len(_of_shape(seen, shapes))
    return next((word for word, digits in NUMBERS.items() if digits == str(count)), "zero" if count == 0 else "many")


def _any(seen: Seen, shapes: str) -> str:
    return _yes(bool(_of_shape(seen, shapes)))


def _all_colored(seen: Seen, shapes: str, color: str) -> str:
    found = _of_shape(seen, shapes)
    return _yes(bool(found) and all(one.color == color for one in found))


def _one_colored(seen: Seen, color: str, shape: str) -> str:
    return _yes(any(one.color == color for one in _of_shape(seen, shape)))


def _placed(seen: Seen, shape: str, relation: str, other: str) -> str:
    pairs = [(first, second) for first in _of_shape(seen, shape) for second in _of_shape(seen, other)]
    name = relation.removeprefix("to the ")
    values = [alignment((a.x, a.y), (b.x, b.y), name) for a, b in pairs if a is not b]
    return _yes(any(value > MIN_ALIGNMENT for value in values))


def _shown(seen: Seen, text: str) -> str:
    prompt = text if text.startswith(_PHOTO) else f"{_PHOTO}{text}"
    return _yes(verify(seen.pixels, prompt, strict=False).correct)


def _of_shape(seen: Seen, name: str) -> list[DetectedObject]:
    return [one for one in seen.objects if one.shape == _SINGULAR[name]]


def _yes(holds: bool) -> str:
    return "Yes" if holds else "No"


_FORMS: tuple[tuple[str, Callable[..., str]], ...] = (
    (rf"How many ({_SHAPES}) are in the image\?", _how_many),
    (rf"Are there any ({_SHAPES}) in the image\?", _any),
    (rf"(?:Is|Are) the ({_SHAPES}|{_SHAPE}) ({_COLOR})\?", _all_colored),
    (rf"Is there an? ({_COLOR}) ({_SHAPE}) in the image\?", _one_colored),
    (rf"Is the ({_SHAPE}) (to the left of|to the right of|above|below) the ({_SHAPE})\?", _placed),
    (r'(?:Does this (?:figure|image) show|The image was drawn from a prompt that asks for) "([^"]+)"', _shown),
    (rf"(an? (?:{_COLOR}) (?:{_SHAPE}))\?", _shown),
)
