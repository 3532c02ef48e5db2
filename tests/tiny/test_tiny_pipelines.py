"""The tiny pipelines are worth testing with: repeatable, and with images that tell seeds and prompts apart."""

from __future__ import annotations

import pytest
import torch

from tests import tiny

ARGUMENTS = {
    "make_if": {"clean_caption": False},
    "make_pixart": {"use_resolution_binning": False, "clean_caption": False},
}


def _image(pipe, name, *, seed=0, prompt="a red circle"):
    torch.manual_seed(seed)  # flow matching draws from the global generator
    generator = torch.Generator().manual_seed(seed)
    arguments = {"num_inference_steps": 2, "output_type": "pt", **ARGUMENTS.get(name, {})}
    images = pipe(prompt, generator=generator, **arguments).images
    return images / 2 + 0.5 if name == "make_if" else images  # which returns its samples


@pytest.mark.parametrize("name", tiny.__all__)
def test_images_are_repeatable_and_varied(name):
    pipe, again = getattr(tiny, name)(), getattr(tiny, name)()
    image = _image(pipe, name)
    assert image.shape == (1, 3, 64, 64)
    torch.testing.assert_close(_image(again, name), image, rtol=0, atol=0)
    assert 0.05 < image.std() < 0.4
    assert (_image(pipe, name, seed=1) - image).abs().mean() > 0.05
    assert (_image(pipe, name, prompt="two blue stars") - image).abs().max() > 1e-5


def test_builders_leave_the_global_generator_alone():
    state = torch.random.get_rng_state()
    tiny.make_sd()
    assert torch.equal(torch.random.get_rng_state(), state)
