"""Pictures as prompts (IP-Adapter): every particle of a prompt sees its picture, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection

from tests import tiny
from tests.pipelines.calls import constant, generator, steered

PROMPT = "a red circle"
ARGUMENTS = {"num_particles": 3, "num_images_per_prompt": 3, "num_inference_steps": 4, "output_type": "pt"}


def attention_weights(unet):
    """Random weights in the layout of an IP-Adapter's file: keys are numbers, the odd ones of cross-attention."""
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    found = {}
    for place, name in enumerate(names):
        to_k = unet.get_submodule(name.removesuffix(".processor")).to_k
        processor = IPAdapterAttnProcessor(to_k.out_features, to_k.in_features)
        for key in ("to_k_ip", "to_v_ip"):
            found[f"{2 * place + 1}.{key}.weight"] = getattr(processor, key)[0].weight.detach() * 3
    return found


def with_ip_adapter():
    pipe = tiny.make_sd()
    width = pipe.unet.config.cross_attention_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        projection = ImageProjection(image_embed_dim=width, cross_attention_dim=width, num_image_text_embeds=4)
        image_proj = {
            name.replace("image_embeds", "proj"): weight.detach() for name, weight in projection.state_dict().items()
        }
        weights = {"image_proj": image_proj, "ip_adapter": attention_weights(pipe.unet)}
        pipe.unet._load_ip_adapter_weights([weights])
    return pipe


def picture(seed=7):
    """Embeddings of no picture and of one, as classifier-free guidance takes them."""
    pipe_width = tiny.make_sd().unet.config.cross_attention_dim
    return [torch.randn(2, 1, pipe_width, generator=generator(seed))]


def images(pipe, reward=None, seed=7, **options):
    arguments = ARGUMENTS | {"ip_adapter_image_embeds": picture(seed)} | options
    return steered(pipe, reward)(PROMPT, generator=generator(), **arguments).images


def test_what_is_not_steered_is_the_stock_image():
    pipe = with_ip_adapter()
    ours = images(pipe, constant, num_particles=1, num_images_per_prompt=1)
    stock = steered(pipe).pipe(
        PROMPT,
        num_inference_steps=4,
        eta=1.0,
        generator=generator(),
        output_type="pt",
        ip_adapter_image_embeds=picture(),
    )
    assert torch.equal(ours, stock.images)


def test_another_picture_gives_other_images():
    assert not torch.allclose(images(with_ip_adapter()), images(with_ip_adapter(), seed=8), atol=1e-3)


@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_give_the_same_images(size):
    whole = images(with_ip_adapter(), reward_scale=1e4, ess_threshold=1.0)
    parts = images(with_ip_adapter(), reward_scale=1e4, ess_threshold=1.0, particle_batch_size=size)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)


def test_a_population_shrinks_with_it():
    out = images(with_ip_adapter(), num_particles=6, final_particles=2, num_images_per_prompt=2, reward_scale=1e4)
    assert len(out) == 2 and bool(out.isfinite().all())
