"""What happened in a steered run: rewards, weights and ancestors of every particle at every scoring step.

Letters of shapes: G prompts, K particles a prompt, S recorded steps (the last holds the finished images),
n returned images a prompt. K changes from step to step where the search drops or copies particles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fk_reward.durable_files import write_whole
from fk_reward.sampling import trace_json
from fk_reward.sampling.trace_fields import (
    STEP_DTYPES,
    TRACE_DTYPES,
    check_indices,
    check_parts,
    check_shape,
    check_tensors,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class TraceStep:
    """One scoring step. All tensors are on the CPU and finite.

    A reward may be -inf, which forbids an image; the log-weight of a finished image is then -inf as well.

    Attributes:
        step: 0-based index of the scheduler step; the number of scheduler steps for the finished images.
        timestep: the scheduler's timestep; 0.0 for the finished images.
        rewards: (G, K) float32, reward of the predicted (or finished) image, before resampling.
        log_weights: (G, K) float64, un-normalised log-weights after weighing, before resampling.
        ess: (G,) float64 in [1, K], the effective sample size of these weights; 0 where every image is forbidden.
        ancestors: (G, K') int64, the slot within its prompt from which each of the K' particles that go on continues;
            None where all stayed in place.
        decode_seconds: wall clock spent in decoding the predicted images.
        reward_seconds: wall clock spent in the reward.
        thumbnails: (G, K, 3, h, w) uint8, the predicted images before resampling, or None.
        final: True for the finished images only.
        reward_parts: of a composition, name -> (G, K) float32, what each part gave; empty for any other reward.
        level: noise level of the samples that the predictions were made from, in [0, 1]; 0 for the finished images;
            None where it is not known.
        judges: names of the rewards, or of the adapters of a reward, that were asked; empty in files of before they
            were recorded.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: a shape, a value or an index that does not fit.

    Example:
        >>> ess = torch.tensor([2.0], dtype=torch.float64)
        >>> log_weights = torch.zeros(1, 2, dtype=torch.float64)
        >>> TraceStep(3, 801.0, torch.ones(1, 2), log_weights, ess, torch.tensor([[0, 0]])).num_particles
        2
    """

    step: int
    timestep: float
    rewards: Tensor
    log_weights: Tensor
    ess: Tensor
    ancestors: Tensor | None
    decode_seconds: float = 0.0
    reward_seconds: float = 0.0
    thumbnails: Tensor | None = None
    final: bool = False
    reward_parts: Mapping[str, Tensor] = field(default_factory=dict)
    level: float | None = None
    judges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate types, shapes and indices."""
        tensors = {name: getattr(self, name) for name in STEP_DTYPES if getattr(self, name) is not None}
        check_tensors(tensors, STEP_DTYPES, forbidden=("rewards", *(("log_weights",) if self.final else ())))
        check_shape("rewards", self.rewards, (-1, -1))
        particles = (self.num_prompts, self.num_particles)
        shapes = {"ess": particles[:1], "ancestors": (self.num_prompts, -1), "thumbnails": (*particles, 3, -1, -1)}
        for name, tensor in tensors.items():
            check_shape(name, tensor, shapes.get(name, particles))
        check_parts(self.reward_parts, particles)
        self._check_values()

    def _check_values(self) -> None:
        num_particles = self.num_particles
        if self.level is not None and not 0 <= self.level <= 1:
            raise ValueError(f"level: expected a noise level in [0, 1], got {self.level}.")
        nothing_allowed = (self.log_weights == -torch.inf).all(dim=1)
        if self.ess[~nothing_allowed].lt(1 - 1e-6).any() or self.ess.max() > num_particles + 1e-6:
            raise ValueError(f"ess: expected values in [1, {num_particles}], got {self.ess.tolist()}.")
        if self.ancestors is not None:
            check_indices("ancestors", self.ancestors, num_particles)
            if self.final:
                raise ValueError("ancestors: the finished images are not resampled; the final entry takes None.")

    @property
    def num_prompts(self) -> int:
        """G."""
        return self.rewards.shape[0]

    @property
    def num_particles(self) -> int:
        """K."""
        return self.rewards.shape[1]

    @property
    def num_left(self) -> int:
        """K', particles that go on."""
        return self.num_particles if self.ancestors is None else self.ancestors.shape[1]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What ran: with the same versions, the same models and the same seeds, enough to make the call again.

    Every value is what JSON can say: numbers, texts, lists and dictionaries; infinite numbers are texts (`"-inf"`).

    Attributes:
        pipeline: class of the wrapped pipeline.
        scheduler: class of the scheduler.
        scheduler_config: its settings (`algorithm_type`, `timestep_spacing`, ...).
        replaced_scheduler: class of the scheduler in whose place it ran; None where it is the pipeline's own.
        eta: what the scheduler's step got; None where it takes none.
        guidance_scale: of the call, or the default of the pipeline's call; None where it has none.
        arguments: the other plain arguments of the pipeline's call (`num_inference_steps`, `height`, ...).
        seeds: initial seeds of the generators; empty for the global one.
        versions: package -> version.
        lookahead: of the predictions that were scored on the way: steps, 1 for that of the step alone, or the adapter.

    Example:
        >>> Provenance(pipeline="StableDiffusionPipeline", scheduler="DDIMScheduler", eta=1.0).replaced_scheduler
    """

    pipeline: str
    scheduler: str
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    replaced_scheduler: str | None = None
    eta: float | None = None
    guidance_scale: float | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    lookahead: int | str = 1


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run has cost, over all prompts and processes.

    Attributes:
        sample_steps: one sample through one step of the scheduler counts one, guidance or not, and so does each step
            of a look-ahead that asks the denoiser; None where it was not recorded.
        denoiser_rows: rows of the batches of the denoiser; guidance makes two of each sample.
        decodes: images decoded.
        reward_calls: images scored.
        seconds: wall clock of the call.
        previews: those of the decoded images that a preview decoded; None where it was not recorded.
        gradients: those of the decoded and scored images that had a backward pass, through reward and decoder; None
            where it was not recorded, of a search that follows gradients.

    Example:
        >>> Cost(sample_steps=200, denoiser_rows=400, decodes=20, reward_calls=20, seconds=3.5).decodes
        20
    """

    sample_steps: int | None
    denoiser_rows: int
    decodes: int
    reward_calls: int
    seconds: float
    previews: int | None = None
    gradients: int | None = 0


@dataclass(frozen=True, eq=False)
class SteeringTrace:
    """The complete run. It can be saved, read back exactly, and drawn.

    Attributes:
        prompts: the G prompts.
        config: settings of the search.
        reward_name: name on the reward's card.
        reward_scale: (G,) float64, the lambda that was used (found by bisection if the config says "auto"); None for a
            search without weights.
        steps: S records in the order of time; the last one, and only it, holds the finished images.
        log_evidence: (G,) float64, log of the estimated normalising constant E[exp(lambda r)]; no estimate where the
            config says `reward_scale="auto"`, and -inf where every finished image is forbidden; None for a search
            without weights.
        selected: (G, n) int64, slots of the returned images, best first.
        num_steps: steps of the scheduler.
        num_model_calls: calls of the denoiser; one that is split into micro-batches counts once.
        num_model_rows: rows of the batches of these calls (guidance doubles them).
        num_decode_calls: images decoded.
        num_reward_calls: images scored.
        seconds: wall clock of the call.
        notes: sentences about this run that its reader must know, such as what was never resampled.
        provenance: what ran; None in files of before it was recorded.
        search: name of the search.
        sample_steps: one sample through one step of the scheduler counts one; None in files of before it was recorded.
        num_preview_calls: images decoded by a preview, among `num_decode_calls`; None in files of before it was
            recorded.
        budget: sample steps of a prompt that the call was given; None without a limit.
        num_gradient_calls: images that had a backward pass through reward and decoder, among `num_decode_calls` and
            `num_reward_calls`; None in files of before it was recorded, of a search that follows gradients.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: records that do not fit together.

    Example:
        >>> from fk_reward.sampling.trace import SteeringTrace, TraceStep
        >>> ess, weights = torch.tensor([1.5], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
        >>> early = TraceStep(4, 601.0, torch.tensor([[0.1, 0.4]]), weights, ess, torch.tensor([[1, 1]]))
        >>> last = TraceStep(10, 0.0, torch.tensor([[0.3, 0.7]]), weights, ess, None, final=True)
        >>> trace = SteeringTrace(("a star",), {}, "clipscore", ess, (early, last), log_evidence=ess,
        ...     selected=torch.tensor([[1]]), num_steps=10, num_model_calls=10, num_model_rows=20,
        ...     num_decode_calls=4, num_reward_calls=4, seconds=1.0)
        >>> trace.lineage().tolist()
        [[1, 1], [0, 1]]
        >>> SteeringTrace.from_json(trace.to_json()).best_so_far.tolist() == trace.best_so_far.tolist()
        True
        >>> [axes.get_label() for axes in trace.plot().axes]
        ['lineage', 'reward', 'ess', 'colorbar']
    """

    prompts: tuple[str, ...]
    config: dict[str, Any]
    reward_name: str
    reward_scale: Tensor | None
    steps: tuple[TraceStep, ...]
    log_evidence: Tensor | None
    selected: Tensor
    num_steps: int
    num_model_calls: int
    num_model_rows: int
    num_decode_calls: int
    num_reward_calls: int
    seconds: float
    notes: tuple[str, ...] = ()
    provenance: Provenance | None = None
    search: str = "fk"
    sample_steps: int | None = None
    num_preview_calls: int | None = None
    budget: int | None = None
    num_gradient_calls: int | None = 0

    def __post_init__(self) -> None:
        """Validate that the records fit together."""
        tensors = {name: getattr(self, name) for name in TRACE_DTYPES if getattr(self, name) is not None}
        check_tensors(tensors, TRACE_DTYPES, forbidden=("log_evidence",))
        self._check_order()
        sizes = (self.steps[0].num_particles, *(step.num_left for step in self.steps[:-1]))
        for step, size in zip(self.steps, sizes, strict=True):
            check_shape(f"rewards of step {step.step}", step.rewards, (len(self.prompts), size))
            if set(step.reward_parts) != set(self.steps[-1].reward_parts):
                raise ValueError(
                    f"reward_parts: step {step.step} has other parts than the last, {[*step.reward_parts]}."
                )
        for name, shape in (("reward_scale", ()), ("log_evidence", ()), ("selected", (-1,))):
            if name in tensors:
                check_shape(name, tensors[name], (len(self.prompts), *shape))
        check_indices("selected", self.selected, self.num_particles)

    def _check_order(self) -> None:
        final = [step.final for step in self.steps]
        if sum(final) != 1 or not final[-1]:
            raise ValueError(f"steps: the last entry, and only it, must be final; got final={final}.")
        indices = [step.step for step in self.steps]
        if indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] != self.num_steps:
            raise ValueError(f"steps: expected indices that rise to num_steps={self.num_steps}, got {indices}.")

    @property
    def num_particles(self) -> int:
        """K at the end: how many images were finished for each prompt."""
        return self.steps[-1].num_particles

    @property
    def cost(self) -> Cost:
        """What the run has cost."""
        return Cost(
            sample_steps=self.sample_steps,
            denoiser_rows=self.num_model_rows,
            decodes=self.num_decode_calls,
            reward_calls=self.num_reward_calls,
            seconds=self.seconds,
            previews=self.num_preview_calls,
            gradients=self.num_gradient_calls,
        )

    @property
    def best_so_far(self) -> Tensor:
        """(G, S) float32: running maximum over the recorded steps of the best reward of each prompt."""
        best = torch.stack([step.rewards.amax(dim=1) for step in self.steps], dim=1)
        return best.cummax(dim=1).values

    def lineage(self, prompt_index: int = 0) -> Tensor:
        """Follow every finished image back through the resampling steps.

        Args:
            prompt_index: which prompt.

        Returns:
            (S, K) int64, K at the end: entry [s, k] is the slot, at recorded step s, of the ancestor of finished
            image k. The last row is 0..K-1.

        Raises:
            IndexError: no such prompt.
        """
        self._check_prompt(prompt_index)
        slots = [torch.arange(self.num_particles)]
        for step in reversed(self.steps[:-1]):
            ancestors = slots[0] if step.ancestors is None else step.ancestors[prompt_index, slots[0]]
            slots.insert(0, ancestors)
        return torch.stack(slots)

    def reward_parts(self, prompt_index: int = 0) -> dict[str, Tensor]:
        """What the parts of a composition of rewards gave to the particles of one prompt.

        Args:
            prompt_index: which prompt.

        Returns:
            Name -> (S, K) float32, K at the beginning, NaN where a step had fewer particles; empty where the reward
            was no composition.

        Raises:
            IndexError: no such prompt.
        """
        self._check_prompt(prompt_index)
        names = self.steps[-1].reward_parts
        rows = {name: [step.reward_parts[name][prompt_index] for step in self.steps] for name in names}
        return {name: pad_sequence(parts, batch_first=True, padding_value=torch.nan) for name, parts in rows.items()}

    def summary(self) -> str:
        """Describe the run in one paragraph of plain text: size, cost, resampling and rewards."""
        final, forbidden = self.steps[-1].rewards, int(self.steps[-1].rewards.isneginf().sum())
        allowed, best = final[~final.isneginf()], final.amax(dim=1)
        resampled = sum(step.ancestors is not None for step in self.steps)
        survivors = [len(self.lineage(g)[0].unique()) for g in range(len(self.prompts))]
        first, last = self.steps[0].num_particles, self.num_particles
        count = f"{first} particles each" + (f" ({last} at the end)" if last < first else "")
        return (
            f"{len(self.prompts)} prompt(s) with {count}, {self.num_steps} "
            f"steps, steered by {self.reward_name}: scored {len(self.steps) - 1} times before the end, "
            f"resampled {resampled} times; on average {sum(survivors) / len(survivors):.1f} of the first "
            f"scored particles have descendants. Finished images: mean reward {float(allowed.mean()):.4g}, "
            f"best of each prompt {float(best[~best.isneginf()].mean()):.4g}"
            + (f"; {forbidden} of {final.numel()} are forbidden (-inf)" if forbidden else "")
            + f". {self.num_model_calls} model calls "
            f"({self.num_model_rows} rows), {self.num_decode_calls} images decoded, {self.num_reward_calls} "
            + (f"scored ({self.num_gradient_calls} with a backward pass)" if self.num_gradient_calls else "scored")
            + f", {self.seconds:.1f} s."
        )

    def to_json(self, path: str | Path | None = None, *, thumbnails: bool = False) -> str:
        """Write the trace as JSON. Every number comes back bit for bit.

        Args:
            path: a file to write as well, or None.
            thumbnails: include the thumbnails, as PNG in base64 (lossless).

        Returns:
            The JSON text.
        """
        text = trace_json.dumps(self, thumbnails=thumbnails)
        if path is not None:
            write_whole(path, text)
        return text

    @classmethod
    def from_json(cls, text_or_path: str | Path) -> SteeringTrace:
        """Read what `to_json` wrote.

        Args:
            text_or_path: the JSON text, or the path of a file with it.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, not a trace, another version, or a missing, unknown or malformed field.
        """
        fields = trace_json.loads(text_or_path, {"trace": cls, "step": TraceStep, "provenance": Provenance})
        made = fields["provenance"]
        steps = tuple(TraceStep(**step) for step in fields["steps"])
        return cls(**{**fields, "steps": steps, "provenance": None if made is None else Provenance(**made)})

    def plot(self, path: str | Path | None = None, *, prompt_index: int = 0) -> Figure:
        """Draw who descended from whom, and the curves of reward and effective sample size below.

        Args:
            path: a file to write as well (the ending chooses the format), or None.
            prompt_index: which prompt.

        Returns:
            The matplotlib figure, which belongs to no window; in a notebook it shows itself.

        Raises:
            IndexError: no such prompt.
        """
        from fk_reward.sampling.trace_plot import plot_trace

        self._check_prompt(prompt_index)
        figure = plot_trace(self, prompt_index)
        if path is not None:
            write_whole(path, partial(figure.savefig, format=Path(path).suffix[1:] or None))
        return figure

    def _check_prompt(self, prompt_index: int) -> None:
        if not 0 <= prompt_index < len(self.prompts):
            raise IndexError(f"prompt_index: expected 0 to {len(self.prompts) - 1}, got {prompt_index}.")
