"""Sentences about a plan, and rates as they are typed."""

from __future__ import annotations

import pytest
import torch

from fk_reward.planning import Settings
from fk_reward.planning.advice import advice_for, parse_tflops, preview_advice

GB = 10**9


@pytest.mark.parametrize("text", ["-1", "0", "float16=", "float16=4,", "inf"])
def test_rates_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="tflops"):
        parse_tflops(text)


def test_what_is_saved_is_said_where_it_is_worth_it():
    flops = {"float16": 1000}
    assert preview_advice(flops, {"float16": 995}, rates={}, peaks=(1000, 995)) == ()
    assert "a peak of 8.00 GB instead of 9.00 GB" in preview_advice(flops, flops, rates={}, peaks=(9 * GB, 8 * GB))[0]


def test_offload_is_advised():
    both = Settings(4, 4, 4, model_offload=True, reward_offload=True)
    sentences = " ".join(advice_for(both, [], None, request=("llava-reward-safety", 4, torch.float16)))
    assert "pipe.enable_model_cpu_offload()" in sentences
    assert "load_reward('llava-reward-safety', offload=True)" in sentences
