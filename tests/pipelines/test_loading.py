"""From what a person types to a pipeline on a device."""

from __future__ import annotations

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from fk_reward.pipelines.loading import LoRA, named_scheduler


@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscreteScheduler", "eulerancestraldiscrete", "EULERANCESTRALDISCRETE"]
)
def test_a_scheduler_keeps_the_noise_levels_and_prediction_of_the_model(name):
    own = DDIMScheduler(beta_start=0.001, beta_schedule="scaled_linear", prediction_type="v_prediction")
    made = named_scheduler(name, own)
    assert type(made).__name__ == "EulerAncestralDiscreteScheduler"
    assert (made.config.beta_start, made.config.prediction_type) == (0.001, "v_prediction")
    assert made.alphas_cumprod.equal(own.alphas_cumprod)


def test_settings_are_read_as_values():
    made = named_scheduler("DPMSolverMultistepScheduler:algorithm_type=sde-dpmsolver++,solver_order=3", DDIMScheduler())
    assert (made.config.algorithm_type, made.config.solver_order) == ("sde-dpmsolver++", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("euler", "Diffusers has no scheduler 'euler'"),
        ("SchedulerMixin", "Diffusers has no scheduler"),
        ("DDIMScheduler:colour=red", "DDIMScheduler has no setting 'colour'"),
    ],
)
def test_what_is_no_scheduler(text, message):
    with pytest.raises(ValueError, match=message):
        named_scheduler(text, DDIMScheduler())


def test_other_noise_levels_are_refused():
    with pytest.raises(ValueError, match="other noise levels"):
        named_scheduler("DDIMScheduler", FlowMatchEulerDiscreteScheduler())


def test_loras_as_they_are_typed(tmp_path):
    file = tmp_path / "style.safetensors"
    file.write_bytes(b"")
    assert LoRA.parse(f"{file}=0.5") == LoRA(str(tmp_path), "style.safetensors", 0.5)
    assert LoRA.parse(str(tmp_path)) == LoRA(str(tmp_path), None, 1.0)
    assert LoRA.parse("owner/name=-1") == LoRA("owner/name", None, -1.0)
    assert LoRA.parse("owner/name/a/b.safetensors") == LoRA("owner/name", "a/b.safetensors", 1.0)
