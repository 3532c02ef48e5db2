"""LLaVA-Reward with compiled blocks: each dimension by itself, all in one pass, on every backbone."""

from __future__ import annotations

import contextlib

import pytest
import torch

from fk_reward.pipelines.acceleration import repeated_blocks

DIMENSIONS = ("alignment", "safety")
TOLERANCE = 1e-5


@pytest.fixture
def reward(tiny):
    torch._dynamo.reset()
    loaded = tiny.load("alignment").add_dimension(tiny.adapters, dimension="safety")
    yield loaded
    for module in loaded.model.modules():
        module._compiled_call_impl = None
    torch._dynamo.reset()


def scores(reward, images, prompts):
    """Of each dimension by itself, for two sizes of batches, then of both in one pass, then of the first again.

    After two sizes the compiled code takes any, so that what it does not look for is not compiled anew.
    """
    alone = [
        reward.set_dimension(name)(images[:size], prompts[:size]) for size in (len(images), 2) for name in DIMENSIONS
    ]
    together = reward.score_dimensions(images, prompts, DIMENSIONS)
    return [*alone, *(together[name] for name in DIMENSIONS), reward.set_dimension("alignment")(images, prompts)]


def compile_blocks(reward):
    """Compile with a backend that runs things as they are; returns what it ran."""
    ran = []

    def backend(graph, inputs):
        def run(*args):
            ran.append(graph)
            return graph.forward(*args)

        return run

    blocks = [block for module in reward.modules_to_compile() for block in repeated_blocks(module)]
    for block in blocks:
        block.compile(backend=backend)
    return ran, {type(block) for block in blocks}


def test_same_scores(reward, batch):
    with torch.no_grad():
        expected = scores(reward, *batch)
        ran, kinds = compile_blocks(reward)
        torch.testing.assert_close(scores(reward, *batch), expected, rtol=0, atol=TOLERANCE)
    assert len(kinds) == 2, "of the vision tower and of the language model"
    assert ran
    assert (expected[0] - expected[1]).abs().min() > 100 * TOLERANCE, "the dimensions differ"


def test_saboteur_mixed_adapters_in_compiled_blocks_are_noticed(phi, batch, monkeypatch):
    torch._dynamo.reset()
    reward = phi.load("alignment", num_crops=3).add_dimension(phi.adapters, dimension="safety")
    with torch.no_grad():
        expected = scores(reward, *batch)
        compile_blocks(reward)
        monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: contextlib.nullcontext())
        with pytest.raises(AssertionError):
            torch.testing.assert_close(scores(reward, *batch), expected, rtol=0, atol=TOLERANCE)
    torch._dynamo.reset()
