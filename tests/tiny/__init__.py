"""Tiny random pipelines of the stock Diffusers classes, built offline and always with the same weights.

Every builder returns a fresh pipeline on the CPU in float32 that makes 64 x 64 images from 8 x 8 latents (so the VAE
scales by 8, as the real ones do; DeepFloyd IF has none) and takes a few milliseconds a step. The weights are random,
yet images of different seeds differ, which is what tests of a sampler need.
"""

from tests.tiny.latent_diffusion import make_sd, make_sdxl
from tests.tiny.pixel_space import make_if
from tests.tiny.transformers_family import make_flux, make_pixart, make_sd3

__all__ = ["make_flux", "make_if", "make_pixart", "make_sd", "make_sd3", "make_sdxl"]
