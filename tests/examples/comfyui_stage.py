"""Stand-ins for the parts of ComfyUI that our nodes touch, written from its interface; not its code.

`KSAMPLER.sample` calls a sampler function as `function(model, x, sigmas, extra_args=, callback=, disable=, **options)`,
where `model(x, sigma, **extra_args)` is the denoised prediction. The start is scaled to the first level before, and
unscaled at the last one afterwards.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import torch

from tests.repository.layout import ROOT

FOLDER = ROOT / "examples" / "comfyui"


class CONST:
    """Flow models: `(1 - sigma) * x0 + sigma * noise`."""

    sigma_max = torch.tensor(1.0)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)


class EPS:
    """All others: `x0 + sigma * noise`."""

    sigma_max = torch.tensor(14.6)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return noise * (torch.sqrt(1 + sigma**2) if max_denoise else sigma) + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class KSAMPLER:
    """Takes a sampler function and its options; the guider calls `sample`."""

    def __init__(self, sampler_function, extra_options={}, inpaint_options={}):  # noqa: B006 (the interface)
        self.sampler_function, self.extra_options = sampler_function, extra_options

    def sample(  # noqa: PLR0917 (the interface)
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        extra_args["denoise_mask"] = denoise_mask
        sampling = model_wrap.inner_model.model_sampling
        model = _InpaintModel(model_wrap, noise, latent_image)
        at_most = bool(sigmas[0] >= sampling.sigma_max)
        start = sampling.noise_scaling(sigmas[0], noise, latent_image, at_most)

        def told(step):
            callback(step["i"], step["denoised"], step["x"], len(sigmas) - 1)

        samples = self.sampler_function(
            model,
            start,
            sigmas,
            extra_args=extra_args,
            callback=None if callback is None else told,
            disable=disable_pbar,
            **self.extra_options,
        )
        return sampling.inverse_noise_scaling(sigmas[-1], samples)


class _InpaintModel:
    """What a sampler function gets as `model`: outside the mask the image is put back, with the row's own noise."""

    def __init__(self, guider, noise, latent_image):
        self.inner_model, self.noise, self.latent_image = guider, noise, latent_image

    def __call__(self, x, sigma, denoise_mask=None, model_options=None, seed=None):
        if denoise_mask is None:
            return self.inner_model(x, sigma, seed=seed)
        known = self.latent_image + self.noise * sigma.view(-1, 1, 1, 1)
        out = self.inner_model(x * denoise_mask + known * (1 - denoise_mask), sigma, seed=seed)
        return out * denoise_mask + self.latent_image * (1 - denoise_mask)


class Guider:
    """A guider and its model: the exact denoiser of standard normal latents."""

    def __init__(self, sampling):
        self.inner_model = SimpleNamespace(model_sampling=sampling, process_latent_out=lambda latent: latent / 0.5)
        self.model_patcher = SimpleNamespace(name="the model")
        self.rows = []

    def __call__(self, x, sigma, model_options=None, seed=None):
        self.rows.append(len(x))
        sigma = sigma.view(-1, 1, 1, 1)
        alpha = 1 - sigma if isinstance(self.inner_model.model_sampling, CONST) else torch.ones_like(sigma)
        return x * alpha / (alpha**2 + sigma**2)

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, seed=None):
        """As a sampling node calls it."""
        extra_args = {"model_options": {}, "seed": seed}
        samples = sampler.sample(self, sigmas, extra_args, callback, noise, latent_image, denoise_mask)
        return self.inner_model.process_latent_out(samples.to(torch.float32))


def install(monkeypatch):
    """Put the stand-ins where `import comfy` finds them; the models that were loaded again, as a list that grows."""
    brought_back = []
    modules = {
        "comfy": {},
        "comfy.samplers": {"KSAMPLER": KSAMPLER},
        "comfy.model_sampling": {"CONST": CONST},
        "comfy.model_management": {
            "get_torch_device": lambda: torch.device("cpu"),
            "load_models_gpu": lambda models, *args, **kwargs: brought_back.extend(models),
        },
    }
    for name, attributes in modules.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return brought_back


def load_nodes(monkeypatch):
    """Load the folder as ComfyUI loads one of `custom_nodes`: as a package by the path of its `__init__.py`."""
    spec = importlib.util.spec_from_file_location("custom_nodes_fk_reward", FOLDER / "__init__.py")
    for name in [name for name in sys.modules if name.startswith(f"{spec.name}.")]:
        monkeypatch.delitem(sys.modules, name)  # its nodes hold the stand-ins of another test
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module
