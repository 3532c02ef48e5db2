"""Tiny random instances of the text-to-image pipelines of Diffusers, one `Family` a class, built offline.

`FAMILIES[name].build()` is a pipeline, and `FAMILIES[name].call_arguments(["a red circle"])` what its call takes
besides the number of steps, the generator, the number of images and the output type.
"""

from tests.tiny.families.bria import BRIA
from tests.tiny.families.cascade import CASCADE
from tests.tiny.families.family import Family
from tests.tiny.families.flux import FLUX
from tests.tiny.families.flux2 import FLUX2
from tests.tiny.families.hunyuan import HUNYUAN
from tests.tiny.families.kandinsky import KANDINSKY
from tests.tiny.families.linear_attention import LINEAR_ATTENTION
from tests.tiny.families.mixed import MIXED
from tests.tiny.families.qwen_image import QWEN_IMAGE
from tests.tiny.families.stable_diffusion import STABLE_DIFFUSION
from tests.tiny.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from tests.tiny.families.stable_diffusion_xl import STABLE_DIFFUSION_XL

FAMILIES: dict[str, Family] = {
    **{**STABLE_DIFFUSION, **STABLE_DIFFUSION_XL, **STABLE_DIFFUSION_3},
    **{**KANDINSKY, **LINEAR_ATTENTION, **QWEN_IMAGE, **BRIA, **FLUX, **FLUX2, **MIXED, **CASCADE, **HUNYUAN},
}

__all__ = ["FAMILIES", "Family"]
