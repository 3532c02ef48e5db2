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
from tests.tiny.families.image_to_image import IMAGE_TO_IMAGE
from tests.tiny.families.kandinsky import KANDINSKY
from tests.tiny.families.linear_attention import LINEAR_ATTENTION
from tests.tiny.families.mixed import MIXED
from tests.tiny.families.older import OLDER
from tests.tiny.families.qwen_image import QWEN_IMAGE
from tests.tiny.families.stable_diffusion import STABLE_DIFFUSION
from tests.tiny.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from tests.tiny.families.stable_diffusion_xl import STABLE_DIFFUSION_XL

GROUPS: dict[str, dict[str, Family]] = {
    "Stable Diffusion 1, 2": STABLE_DIFFUSION,
    "SDXL": STABLE_DIFFUSION_XL,
    "SD3, AuraFlow, PixArt, Lumina, CogView": STABLE_DIFFUSION_3,
    "Flux and relatives": FLUX,
    "FLUX.2 and relatives": FLUX2,
    "Qwen-Image and relatives": QWEN_IMAGE,
    "Sana, PRX": LINEAR_ATTENTION,
    "Hunyuan": HUNYUAN,
    "Bria": BRIA,
    "Kandinsky": KANDINSKY,
    "Stable Cascade, Wuerstchen": CASCADE,
    "others": MIXED,
    "pixels, and older ones": OLDER,
    "from an image": IMAGE_TO_IMAGE,
}
FAMILIES: dict[str, Family] = {name: family for group in GROUPS.values() for name, family in group.items()}

__all__ = ["FAMILIES", "GROUPS", "Family"]
