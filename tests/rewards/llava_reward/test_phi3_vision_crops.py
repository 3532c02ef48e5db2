"""Which crops go through the vision tower of Phi-3-vision."""

from __future__ import annotations

import pytest
import torch

from fk_reward.rewards.llava_reward.backbones.phi3_vision import PhiVisionBackbone
from tests.tiny.phi3_vision import write_phi3_vision


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return PhiVisionBackbone.from_pretrained(write_phi3_vision(tmp_path_factory.mktemp("phi")), num_crops=4)


@pytest.mark.parametrize(
    ("grids", "encoded"), [([(1, 1)], 1), ([(1, 2)], 3), ([(1, 1), (1, 2), (2, 2), (1, 1)], 1 + 3 + 5 + 1)]
)
def test_a_picture_of_one_crop_is_encoded_once(backbone, grids, encoded):
    embedding = backbone.model.vision_embed_tokens
    crops = [
        torch.rand(1 + rows * columns, 3, 28, 28, generator=torch.Generator().manual_seed(0)) for rows, columns in grids
    ]
    crops = torch.cat([own[:1].repeat(2, 1, 1, 1) if len(own) == 2 else own for own in crops])
    seen = []
    handle = embedding.img_processor.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    features = embedding(crops, grids)
    handle.remove()
    assert seen == [encoded]
    torch.testing.assert_close(features, embedding.lay_out(embedding.encode(crops), grids))


@pytest.mark.parametrize("shape", [(28, 28), (20, 40), (90, 30)])
def test_the_global_crop_is_the_only_crop(backbone, shape):
    transform = PhiVisionBackbone(backbone.model, backbone.tokenizer, num_crops=1).hd_transform
    overview, crop = transform(torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(overview, crop)
