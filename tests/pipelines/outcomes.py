"""What steering does to one pipeline class, seen from the outside: a run is right, refused early and clearly, or wrong.

The oracle is the stock pipeline: its own images of the same seeds, also where a scoring step is made to predict the
finished sample, so that the reward has to see the finished image.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from fk_reward import FKSteeringPipeline
from fk_reward.pipelines import stochastic_scheduler
from fk_reward.pipelines.steered_run import SteeredRun
from tests.pipelines.calls import BrightnessReward
from tests.tiny.families import FAMILIES

PROMPTS = ("a red circle on a blue field", "two stars")
STEPS = 3
TOLERANCE = 3e-4  # between batches of different sizes, float32
_DENOISERS = re.compile("UNet|Transformer|UVit|DiT|DiffNeXt|Prior")
_REMEDIES = re.compile(
    r"preview|num_resamples=0|best of|Pruning|one prompt|[Pp]ass |[Uu]se |[Aa]sk for|[Ww]rap |[Ww]rite |"
    r"cannot be (steered|batched)"
)
_WAYS_ON = re.compile("num_resamples=0|best of|Pruning|[Ww]rite ")


class SilentlyWrong(AssertionError):
    """A call was accepted, and what came back is not what the stock pipeline or the mathematics say."""


class Obscure(AssertionError):
    """A call failed late, or with an error that helps nobody."""


class Refused(Exception):
    """A call was refused before the second step, by an error that names the class and says what to do."""


@dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Attributes:
        family: class of the pipeline.
        outcome: "steers", "steers with a preview", "best of N only", "refused", "silently wrong" or "obscure".
        scheduler: class that `from_pretrained` installs; the pipeline's own where none can be steered.
        prompts: "together", if several prompts in one call give what each gives alone; "padded to the longest", if they
            do but for the padding, in the stock pipeline as here; "one a call", if several are refused; or "".
        remark: what the error said, or where the images differ.
    """

    family: str
    outcome: str
    scheduler: str
    prompts: str = ""
    remark: str = ""


class WatchfulReward(BrightnessReward):
    """Mean of the red channel, of images that are images; keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """As `BrightnessReward`; raises for what lies outside [0, 1]."""
        if images.ndim != 4 or images.shape[1] != 3 or not torch.isfinite(images).all():
            raise SilentlyWrong(f"The reward was shown a tensor of shape {tuple(images.shape)}, or NaN.")
        if images.min() < 0 or images.max() > 1:
            raise SilentlyWrong(f"The reward was shown pixels in [{images.min():.2f}, {images.max():.2f}].")
        self.seen.append(images.clone())
        return super().score(images, prompts)


class Examination:
    """The runs of one family; every run builds on the same pipeline, whose scheduler is put back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.family = FAMILIES[name]
        self.pipe = self.family.build()
        self.own_scheduler = getattr(self.pipe, "scheduler", None)
        self.preview: Any = None
        self.several = len(PROMPTS)
        self._expected_np: np.ndarray | None = None
        self._first_alone: np.ndarray | None = None

    # Runs -------------------------------------------------------------------------------------------------------

    def stock(self, output_type: str, *, num_images: int = 2) -> Any:
        """Images of the wrapped pipeline itself; None where its output has none."""
        arguments = {**self.family.call_arguments([PROMPTS[0]]), "num_images_per_prompt": num_images}
        generators = self._generators(num_images)
        arguments |= {**self._steps(), "output_type": output_type, "generator": generators}
        torch.manual_seed(0)
        with self._stepping(generators) as self._samples:
            out = self.pipe(**self._known(arguments))
        return next((out[name] for name in ("images", "image", "rgb") if name in out), None)

    @contextmanager
    def _stepping(self, generators: Any) -> Iterator[list[Tensor]]:
        """The stock pipeline's steps with what the wrapper hands on where the pipeline does not; the samples so far."""
        scheduler, samples = self.own_scheduler, []
        if not hasattr(scheduler, "step"):
            yield samples
            return
        original = scheduler.step
        known = inspect.signature(original).parameters
        defaults = {"generator": generators} | ({} if self._takes_eta else {"eta": 1.0})
        defaults = {name: value for name, value in defaults.items() if name in known}

        def step(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **{**defaults, **kwargs})
            samples.append(out[0])
            return out

        with patch.object(scheduler, "step", functools.wraps(original)(step)):
            yield samples

    def steered(self, *, prompts: tuple[str, ...] = PROMPTS[:1], steps: int = STEPS, **arguments: Any) -> Any:
        """A call of the wrapper; what it refuses becomes `Refused`, what it drops `Obscure`."""
        wrapped = self._wrapped()
        conditions = self.family.call_arguments(list(prompts))
        if "prompt" not in conditions:
            conditions["reward_prompts"] = list(prompts)
        arguments.setdefault("generator", self._generators(len(prompts) * arguments["num_particles"]))
        torch.manual_seed(0)
        with self._counting() as calls:
            try:
                out = wrapped(**{**conditions, **self._steps(steps), **arguments})
            except (SilentlyWrong, KeyboardInterrupt):
                raise
            except Exception as error:
                raise self._judged(error, calls) from error
        return out, wrapped.reward

    def _wrapped(self) -> FKSteeringPipeline:
        try:
            wrapped = FKSteeringPipeline(self.pipe, reward=WatchfulReward(), preview=self.preview)
        except Exception as error:
            raise self._judged(error, {}) from error
        return wrapped

    def _steps(self, steps: int = STEPS) -> dict[str, int]:
        names = ("num_inference_steps", "decoder_num_inference_steps")
        return {name: steps for name in names[:1] if name in self._parameters} or {names[1]: steps}

    def _generators(self, count: int, *, first: int = 0) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(first, first + count)]
        return generators[0] if self.family.one_generator else generators

    def _known(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if name in self._parameters}

    @cached_property
    def _parameters(self) -> Mapping[str, Any]:
        return inspect.signature(type(self.pipe).__call__).parameters

    @property
    def _takes_eta(self) -> bool:
        return "eta" in self._parameters

    # Errors -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _counting(self) -> Iterator[dict[str, int]]:
        """Calls of each denoiser inside the block."""
        calls: dict[str, int] = {}

        def count(name: str) -> Callable[..., None]:
            return lambda *_: calls.update({name: calls.get(name, 0) + 1})

        modules = {
            name: module
            for name, module in self.pipe.components.items()
            if isinstance(module, nn.Module) and _DENOISERS.search(type(module).__name__)
        }
        hooks = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
        try:
            yield calls
        finally:
            for hook in hooks:
                hook.remove()

    @cached_property
    def _calls_of_a_step(self) -> dict[str, int]:
        with self._counting() as calls:
            self.stock("np", num_images=1)
        return {name: -(-count // STEPS) for name, count in calls.items()}

    def _judged(self, error: Exception, calls: Mapping[str, int]) -> Exception:
        calls = dict(calls)  # as they are now: the stock run below calls the denoisers, too
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, ValueError | TypeError):
            return Obscure(text)
        first_step = self._calls_of_a_step if calls else {}
        # a prior has made its embeddings when the first step of the images begins
        steered = [name for name in calls if not name.startswith("prior")] or list(calls)
        late = [name for name in steered if calls[name] > first_step.get(name, 0)]
        if late:
            return Obscure(f"{text} (after {calls} calls of the denoisers)")
        names = (type(self.pipe).__name__, type(self.own_scheduler).__name__)
        if not any(name in str(error) for name in names) or not _REMEDIES.search(str(error)):
            return Obscure(f"{text} (names no class, or no remedy)")
        return Refused(str(error))

    # Checks -----------------------------------------------------------------------------------------------------

    def check_equals_stock(self) -> None:
        """Nothing is resampled: the images of the stock pipeline for each output type, and rewards that are theirs."""
        if self._expected_np is None:  # the stock images are the same with a preview
            self._expected_np = self._expected()
            self._finished = self._samples[-1] if self._samples else None
            if self.family.encodes:  # inpainting puts the known part back behind the last step
                self._finished = self.stock("latent")
        expected = self._expected_np
        order = np.argsort(-_over_white(expected)[..., 0].mean((1, 2)), kind="stable")
        arguments = {"num_particles": 2, "num_resamples": 0, "num_images_per_prompt": 2, **self._plain_eta()}
        for output_type in ("np", "pt", "pil"):
            try:
                out, _ = self.steered(output_type=output_type, **arguments)
            except Refused as refusal:
                if output_type == "np" or "Ask for 'np'" not in str(refusal):
                    raise
                continue
            self._check_images(out, expected[order], output_type)
            if output_type == "np":
                self._first_alone = out.images
            else:  # some pipelines give the network's own values as "pt"
                self._check_same(out.images, self.stock(output_type), order, output_type)
        one, _ = self.steered(output_type="np", **{**arguments, "num_particles": 1, "num_images_per_prompt": 1})
        _check_close(one.images, np.asarray(self.stock("np", num_images=1)), "one particle")

    def _check_same(self, images: Any, stock: Any, order: np.ndarray, output_type: str) -> None:
        if not all(np.array_equal(np.asarray(images[i]), np.asarray(stock[k])) for i, k in enumerate(order)):
            raise SilentlyWrong(f"The images for {output_type!r} are not the stock pipeline's.")

    def _expected(self) -> np.ndarray:
        try:
            images = self.stock("np")
        except Exception:  # noqa: BLE001 (whatever it is: then steering must refuse)
            images = None
        if images is None:
            self.steered(output_type="np", num_particles=2, num_resamples=0)
            raise SilentlyWrong("The stock pipeline makes no images of this call, and steering accepted it.")
        return np.asarray(images)

    def _plain_eta(self) -> dict[str, float]:
        """Pipelines that take eta run with the 0 that is their default."""
        takes_eta = self._takes_eta and "eta" in inspect.signature(self.pipe.scheduler.step).parameters
        return {"eta": 0.0} if takes_eta else {}

    def _check_images(self, out: Any, expected: np.ndarray, output_type: str) -> None:
        rewards = _over_white(expected)[..., 0].mean((1, 2))
        if np.abs(out.rewards[0].numpy() - rewards).max() > 1 / 255:
            raise SilentlyWrong(f"{output_type}: rewards {out.rewards[0].tolist()}, of the stock images {rewards}.")
        if output_type == "np":
            _check_close(out.images, expected, output_type)

    def check_predictions_decode_as_the_end(self) -> None:
        """A scoring step that predicts the finished sample shows the reward the finished image."""
        expected, finished = self._expected_np, self._finished
        score = SteeredRun.score
        with patch.object(SteeredRun, "score", lambda run, x0_pred, *level: score(run, finished.clone(), *level)):
            _, reward = self.steered(num_particles=2, num_images_per_prompt=2, output_type="np", num_resamples=1)
        if len(reward.seen) < 2:
            raise SilentlyWrong("Nothing was scored before the end.")
        if self.preview is None:
            _check_close(
                reward.seen[0].permute(0, 2, 3, 1).numpy(), _over_white(expected), "prediction at a scoring step"
            )

    def check_steers(self) -> None:
        """Every step resamples: finite rewards of images in [0, 1], and ancestors that were drawn."""
        arguments = {"reward_scale": 1e4, "ess_threshold": 1.0, "resample_start": 0.0, "resample_stop": 1.0}
        out, reward = self.steered(
            steps=4, num_particles=3, num_images_per_prompt=3, output_type="np", potential="difference", **arguments
        )
        if len(reward.seen) < 2 or all(step.ancestors is None for step in out.trace.steps):
            raise SilentlyWrong("Nothing was scored or resampled before the end.")
        if not np.isfinite(out.images).all() or out.images.min() < 0 or out.images.max() > 1:
            raise SilentlyWrong("The images are not finite, or not in [0, 1].")

    def check_prompts(self) -> str:
        """Whether two prompts in one call give what each gives alone."""

        def run(prompts: tuple[str, ...], first: int = 0) -> np.ndarray:
            arguments = {"num_particles": 2, "num_images_per_prompt": 2, "num_resamples": 0, "output_type": "np"}
            generators = self._generators(2 * len(prompts), first=first)
            out, _ = self.steered(prompts=prompts, generator=generators, **arguments, **self._plain_eta())
            return out.images

        alone = [self._first_alone, run(PROMPTS[1:], first=2)]  # the first: the very call of `check_equals_stock`
        try:
            together = run(PROMPTS)
        except Refused:
            return "one a call"
        except Obscure:
            if self._stock_refuses_several():
                return "one a call"
            raise
        if self.family.one_generator:
            return ""  # the second prompt would be drawn with other numbers than alone
        # the encoding of a shared image moves a generator on, which alone is that of another prompt
        comparable = len(alone[0]) if self.family.encodes else len(together)
        expected = np.concatenate(alone)
        try:
            _check_close(together[:comparable], expected[:comparable], "two prompts against each alone")
        except SilentlyWrong:
            if not self._as_stock_does(together):
                raise
            return "padded to the longest"
        return "together"

    def _as_stock_does(self, together: np.ndarray) -> bool:
        """Whether the stock pipeline gives these images where it draws one for each of the two prompts."""
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 2)]
        arguments = {**self.family.call_arguments(list(PROMPTS)), **self._steps(), "output_type": "np"}
        torch.manual_seed(0)
        with self._stepping(generators):
            images = self.pipe(**self._known({**arguments, "generator": generators})).images
        pairs = zip(images, together.reshape(2, 2, *together.shape[1:]), strict=True)
        return all(np.abs(pair - image).max((1, 2, 3)).min() <= TOLERANCE for image, pair in pairs)

    def _stock_refuses_several(self) -> bool:
        arguments = {**self.family.call_arguments(list(PROMPTS)), **self._steps()}
        with self._counting() as calls:
            try:
                self.pipe(**self._known(arguments))
            except ValueError:
                return not calls
        return False


def _check_close(images: np.ndarray, expected: np.ndarray, what: str) -> None:
    if images.shape != expected.shape:
        raise SilentlyWrong(f"{what}: shape {images.shape}, {expected.shape} of the stock pipeline.")
    difference = float(np.abs(images - expected).max())
    if not difference <= TOLERANCE:
        raise SilentlyWrong(f"{what}: differs by {difference:.3g}.")


def _any_preview(latents: Tensor) -> Tensor:
    """A preview for latents of any shape: three numbers of each sample, as a small image."""
    flat = latents.flatten(1).float()
    return torch.sigmoid(flat[:, :3])[:, :, None, None].expand(-1, -1, 8, 8)


def _over_white(images: np.ndarray) -> np.ndarray:
    """Images `(B, H, W, 3)` as a viewer shows them, of `(B, H, W, 3 or 4)`."""
    return images if images.shape[-1] == 3 else images[..., :3] * images[..., 3:] + 1 - images[..., 3:]


def examine(name: str) -> Outcome:
    """The outcome of this family."""
    examination = Examination(name)
    own = examination.own_scheduler
    scheduler = "" if own is None else type(own).__name__
    try:
        return _examined(examination)
    except (SilentlyWrong, Obscure) as error:
        kind = "silently wrong" if isinstance(error, SilentlyWrong) else "obscure"
        return Outcome(name, kind, scheduler, remark=str(error))
    except Refused as error:
        return Outcome(name, "refused", scheduler, remark=str(error))


def _examined(examination: Examination) -> Outcome:
    outcome, remark = "steers", ""
    try:
        examination.check_equals_stock()
    except Refused as error:
        if "preview" not in str(error):
            raise
        examination.preview, outcome = _any_preview, "steers with a preview"
        examination.check_equals_stock()
    prompts = examination.check_prompts()
    try:
        examination._wrapped().scheduler = stochastic_scheduler(examination.own_scheduler)
        examination.check_predictions_decode_as_the_end()
        scheduler = type(examination.pipe.scheduler).__name__
        examination.check_steers()
    except (Refused, ValueError) as error:
        refusal = error if isinstance(error, Refused) else examination._judged(error, {})
        if not isinstance(refusal, Refused):
            raise refusal from error
        if "preview" in str(refusal) and examination.preview is None:
            return _with_preview(examination, prompts)
        if not _WAYS_ON.search(str(refusal)):
            raise Obscure(f"{refusal} (names no way to use this model)") from error
        outcome, scheduler, remark = "best of N only", type(examination.own_scheduler).__name__, str(refusal)
    return Outcome(examination.name, outcome, scheduler, prompts, remark)


def _with_preview(examination: Examination, prompts: str) -> Outcome:
    examination.preview = _any_preview
    examination._wrapped().scheduler = stochastic_scheduler(examination.own_scheduler)
    examination.check_steers()
    scheduler = type(examination.pipe.scheduler).__name__
    return Outcome(examination.name, "steers with a preview", scheduler, prompts)
