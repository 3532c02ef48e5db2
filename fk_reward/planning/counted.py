"""All that is counted while the modules are without numbers, for the choice of settings afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fk_reward.planning.costs import Picture, batch_costs
from fk_reward.planning.memory import MemoryModel
from fk_reward.planning.subjects import Subjects, weight_bytes
from fk_reward.planning.work import flops_by_dtype
from fk_reward.search.base import Forecast


@dataclass(frozen=True)
class Counted:
    """What a call takes.

    Attributes:
        model: memory of the call.
        flops: its operations, by dtype.
        flops_with_preview: the same with the preview of the model's family, where none was asked for and there is one.
        num_scorings: how often pictures are scored, the finished ones included.
        can_offload_reward: whether the reward can rest on the CPU.
    """

    model: MemoryModel
    flops: dict[str, int]
    flops_with_preview: dict[str, int] | None
    num_scorings: int
    can_offload_reward: bool

    @property
    def weights(self) -> dict[str, int]:
        """Bytes by what they are for; those of a preview only where it is used."""
        return self.model.weights | ({} if self.model.previewed else {"preview": 0})


def count(subjects: Subjects, picture: Picture, course: Forecast, *, previewed: bool) -> Counted:
    """Run each phase on one picture and on K.

    Args:
        subjects: the pipeline, the reward and a preview.
        picture: what is drawn.
        course: the particles of the call; the first step has K.
        previewed: whether the preview is used.
    """
    num_particles = course.steps[0]
    one = batch_costs(subjects, picture, batch_size=1)
    model = MemoryModel(
        num_particles=num_particles,
        weights=_weights(subjects),
        one=one,
        all=one if num_particles == 1 else batch_costs(subjects, picture, batch_size=num_particles),
        previewed=previewed and bool(course.scorings),
        num_finished=course.finished,
    )
    other = None
    if subjects.preview is not None and course.scorings and not previewed:
        other = flops_by_dtype(subjects, replace(model, previewed=True), course)
    return Counted(
        model=model,
        flops=flops_by_dtype(subjects, model, course),
        flops_with_preview=other,
        num_scorings=len(course.scorings) + 1,
        can_offload_reward=subjects.can_offload_reward,
    )


def _weights(subjects: Subjects) -> dict[str, int]:
    parts = subjects.pipeline_weights()
    parts |= {"preview": subjects.preview_weights(), "reward": subjects.reward_weights()}
    return {name: weight_bytes(tensors) for name, tensors in parts.items()}
