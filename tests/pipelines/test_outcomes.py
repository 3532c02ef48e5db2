"""Every text-to-image pipeline of Diffusers that can be built here is steered rightly, or refused early and clearly."""

from __future__ import annotations

import pytest
import torch

from fk_reward.pipelines.decoding import LatentDecoder
from tests.pipelines import outcome_table
from tests.pipelines.outcomes import Examination, Obscure, Outcome, Refused, SilentlyWrong, examine
from tests.tiny.families import FAMILIES

DOCUMENTED = outcome_table.documented_rows(outcome_table.PAGE.read_text(encoding="utf-8"))
WRONG = ("silently wrong", "obscure")
OFTEN = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
    *("PixArtSigmaPipeline", "SanaPipeline", "QwenImagePipeline", "KandinskyV22CombinedPipeline", "IFPipeline"),
    *("StableDiffusionImg2ImgPipeline", "StableDiffusionXLInpaintPipeline", "StableDiffusionSAGPipeline"),
    *("StableDiffusionPanoramaPipeline", "StableCascadePriorPipeline", "AmusedPipeline"),
)
"""One of each kind of denoiser, scheduler and outcome; the others are examined by `make test-all`."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.long) for name in FAMILIES]
)
def test_the_outcome_is_the_documented_one_and_never_wrong(name):
    outcome = examine(name)
    assert outcome.outcome not in WRONG, outcome.remark
    assert outcome_table.row(outcome) == DOCUMENTED[name], f"stale: {outcome_table.BEGIN}"


def test_each_documented_outcome_is_among_those_that_are_always_examined():
    outcomes = {name: row.split("|")[3].strip() for name, row in DOCUMENTED.items()}
    assert {outcomes[name] for name in OFTEN} == set(outcomes.values()) >= {"steers"}


def test_the_table_has_a_row_for_each_pipeline_and_no_other():
    assert list(DOCUMENTED) == list(FAMILIES)
    assert len(FAMILIES) >= 50


def test_the_names_are_those_of_the_classes():
    assert all(
        type(FAMILIES[name].build()).__name__ == name for name in ("FluxPipeline", "KandinskyV22CombinedPipeline")
    )


def test_builders_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    FAMILIES["StableDiffusionPipeline"].build()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_wrong_decoder_is_noticed(monkeypatch):
    decode = LatentDecoder.__call__
    monkeypatch.setattr(LatentDecoder, "__call__", lambda decoder, latents: decode(decoder, latents * 0.9))
    examination = Examination("StableDiffusionPipeline")
    examination.check_equals_stock()
    assert examine("StableDiffusionPipeline").outcome == "silently wrong"


@pytest.mark.parametrize(
    ("error", "calls", "kind"),
    [
        (ValueError("StableDiffusionPipeline cannot: pass preview=..."), 0, Refused),
        (ValueError("StableDiffusionPipeline cannot: pass preview=..."), 1, Refused),
        (ValueError("StableDiffusionPipeline cannot: pass preview=..."), 3, Obscure),
        (ValueError("cannot: pass preview=..."), 0, Obscure),
        (ValueError("StableDiffusionPipeline cannot."), 0, Obscure),
        (RuntimeError("StableDiffusionPipeline cannot: pass preview=..."), 0, Obscure),
    ],
)
def test_an_error_is_clear_if_it_is_early_and_names_class_and_remedy(error, calls, kind):
    examination = Examination("StableDiffusionPipeline")
    assert type(examination._judged(error, {"unet": calls} if calls else {})) is kind


def test_a_refusal_at_the_first_call_of_the_denoiser_is_early():
    examination = Examination("StableDiffusionPipeline")

    def refuse(*_):
        raise ValueError("StableDiffusionPipeline cannot: pass preview=...")

    hook = examination.pipe.unet.register_forward_hook(refuse)

    def remove(*_):
        hook.remove()

    examination.pipe.unet.register_forward_hook(remove, always_call=True)
    with pytest.raises(Refused):
        examination.steered(num_particles=1, num_resamples=0)


def test_a_row_says_what_was_found():
    outcome = Outcome("FluxPipeline", "steers", "DPMSolverMultistepScheduler", "together")
    line = outcome_table.row(outcome)
    assert line == "| Flux and relatives | `FluxPipeline` | steers | `DPMSolverMultistepScheduler` | together |  |"
    page = f"text\n{outcome_table.BEGIN}\n| a | b |\n|---|---|\n{line}\n{outcome_table.END}\nmore"
    assert outcome_table.documented_rows(page) == {"FluxPipeline": line}


def test_images_outside_the_unit_range_are_noticed():
    examination = Examination("FluxPipeline")
    with pytest.raises(SilentlyWrong, match="in \\[-1"):
        examination._wrapped().reward.score(torch.full((1, 3, 4, 4), -1.0), ["a"])
