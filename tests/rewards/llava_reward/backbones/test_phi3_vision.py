"""Phi-3.5-vision: its HD transform against PIL, the backbone against a slow reference of transformers' parts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3Model, PreTrainedTokenizerFast
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from fk_reward.rewards.llava_reward.backbones.phi3_vision import CLIP_MEAN, CLIP_STD, HDTransform, PhiVisionBackbone
from fk_reward.rewards.llava_reward.backbones.phi3_vision_model import (
    PhiImageEmbedding,
    PhiVisionConfig,
    RowwiseRotaryEmbedding,
)
from tests.tiny import phi3_vision
from tests.tiny.phi3_vision import CONFIG, VISION, write_phi3_vision

PROMPTS = ["a red cat", "", "two blue birds on a long green wire, seen from far below in the early evening light"]
SHAPES = [(40, 60), (90, 40), (33, 33)]
LIMIT = CONFIG["original_max_position_embeddings"]
OTHER_SIZES = {  # grouped keys and values, another patch grid, and features of two layers further down
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vision_config": {**VISION, "hidden_size": 8, "image_size": 18, "patch_size": 3, "num_hidden_layers": 4},
    "img_processor": {**CONFIG["img_processor"], "image_dim_out": 8, "layer_idx": -3},
}


def make_images(shapes, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, height, width, generator=generator) for height, width in shapes]


class Reference:
    """Loops over crops, lines and tokens, with the weights as they are in the files."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.clip = CLIPVisionModel(CLIPVisionConfig(**self.config["vision_config"])).eval()
        prefix = "model.vision_embed_tokens.img_processor.vision_model."
        self.clip.load_state_dict(self.part(prefix))
        self.language_model = Phi3Model(self.language_config()).eval()
        self.language_model.load_state_dict(
            {name: value for name, value in self.part("model.").items() if not name.startswith("vision_embed_tokens.")}
        )

    def part(self, prefix):
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}

    def language_config(self):
        limit, rope = self.config["original_max_position_embeddings"], self.config["rope_scaling"]
        rope = {**rope, "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": limit}
        del rope["type"]
        unrelated = ("rope_scaling", "rope_theta", "vision_config", "img_processor", "auto_map", "_attn_implementation")
        config = {key: value for key, value in self.config.items() if key not in unrelated}
        return Phi3Config(**config, rope_parameters=rope, attn_implementation="eager")

    def token_ids(self, prompt):
        """Texts before and after the image: the chat template up to the prompt's end, cut where the image stands."""
        message = {"role": "user", "content": f"<|image_1|>\n{prompt}"}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        text = text[: -len("<|end|>\n<|assistant|>\n")] + "<|endoftext|>"
        return [self.tokenizer(part).input_ids for part in text.split("<|image_1|>")]

    def lines(self, patches, rows, columns):
        """patches (rows * columns, patches, C), a list of token features (4C)."""
        side = round(patches.shape[1] ** 0.5)
        tokens = []
        for line in range(rows * side // 2):
            for place in range(columns * side // 2):
                crop = line // (side // 2) * columns + place // (side // 2)
                top, left = 2 * (line % (side // 2)), 2 * (place % (side // 2))
                corners = [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]
                tokens.append(torch.cat([patches[crop, y * side + x] for y, x in corners]))
            tokens.append(self.weights["model.vision_embed_tokens.sub_GN"].flatten())
        return tokens

    @torch.no_grad()
    def visual_tokens(self, crops, grid):
        layer = self.config["img_processor"].get("layer_idx", -2)
        states = [self.clip(crop[None], output_hidden_states=True).hidden_states[layer][:, 1:] for crop in crops]
        separator = self.weights["model.vision_embed_tokens.glb_GN"].flatten()
        features = [*self.lines(torch.cat(states[1:]), *grid), separator, *self.lines(states[0], 1, 1)]
        layers = self.part("model.vision_embed_tokens.img_projection.")
        hidden = functional.gelu(functional.linear(torch.stack(features), layers["0.weight"], layers["0.bias"]))
        return functional.linear(hidden, layers["2.weight"], layers["2.bias"])

    @torch.no_grad()
    def row(self, crops, grid, prompt):
        visual = self.visual_tokens(crops, grid)
        before, after = (self.language_model.embed_tokens(torch.tensor(ids)) for ids in self.token_ids(prompt))
        embeddings = torch.cat([before, visual, after])[None]
        return visual, self.language_model(inputs_embeds=embeddings).last_hidden_state[0]


@torch.no_grad()
def run(backbone, images, prompts):
    """Visual tokens and hidden states of each row without padding."""
    inputs = backbone.prepare(images, prompts)
    visual = backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)
    states = backbone.language_model(**backbone.language_arguments(inputs, visual)).last_hidden_state
    assert states.isfinite().all()
    rows = [state[: last + 1] for state, last in zip(states, inputs.last_token, strict=True)]
    return list(zip(visual.split(inputs.num_visual_tokens), rows, strict=True))


def check_against_reference(backbone, reference):
    """Rows alone; together, and so on, is the business of `check_batch_invariance`."""
    for image, prompt in zip(make_images(SHAPES), PROMPTS, strict=True):
        grid = backbone.hd_transform.grid(*image.shape[1:])
        visual, states = run(backbone, [image], [prompt])[0]
        expected_visual, expected_states = reference.row(backbone.hd_transform(image), grid, prompt)
        torch.testing.assert_close(visual, expected_visual, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(states, expected_states, atol=1e-4, rtol=1e-4)


def check_batch_invariance(backbone):
    """Mixed sizes, prompts and lengths, rows on both sides of the limit where LongRoPE changes its factors."""
    images = make_images(SHAPES)
    together = run(backbone, images, PROMPTS)
    lengths = [len(states) for _, states in together]
    assert min(lengths) < LIMIT < max(lengths)
    for image, prompt, (visual, states) in zip(images, PROMPTS, together, strict=True):
        alone_visual, alone_states = run(backbone, [image], [prompt])[0]
        torch.testing.assert_close(visual, alone_visual, atol=1e-4, rtol=0)
        torch.testing.assert_close(states, alone_states, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_phi3_vision(tmp_path_factory.mktemp("phi3_vision"))


@pytest.fixture(scope="module")
def backbone(folder):
    return PhiVisionBackbone.from_pretrained(folder, num_crops=4)


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder)


@pytest.mark.parametrize("num_crops", [1, 4, 16])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_states_agree_with_the_reference(folder, reference, num_crops, attn_implementation):
    options = {"num_crops": num_crops, "attn_implementation": attn_implementation}
    check_against_reference(PhiVisionBackbone.from_pretrained(folder, **options), reference)


def test_states_agree_with_the_reference_for_other_sizes(tmp_path):
    folder = write_phi3_vision(tmp_path, seed=1, **OTHER_SIZES)
    check_against_reference(PhiVisionBackbone.from_pretrained(folder, num_crops=6), Reference(folder))


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_a_row_does_not_depend_on_its_neighbours(folder, attn_implementation):
    check_batch_invariance(
        PhiVisionBackbone.from_pretrained(folder, num_crops=4, attn_implementation=attn_implementation)
    )


def wrong_order(forward):
    """Global crop, separator, other crops."""

    def reordered(self, crops, grids):
        features = forward(self, crops, grids)
        images = features.split([self.num_tokens(*grid) for grid in grids])
        overview = self.crop_tokens * (self.crop_tokens + 1)
        parts = [(image[-overview:], image[-overview - 1 : -overview], image[: -overview - 1]) for image in images]
        return torch.cat([part for triple in parts for part in triple])

    return reordered


def transposed_crops(lines):
    return lambda self, patches, rows, columns: lines(
        self, patches.unflatten(0, (columns, rows)).transpose(0, 1).flatten(0, 1), rows, columns
    )


def transposed_merge(lines):
    return lambda self, patches, rows, columns: lines(
        self, patches.unflatten(1, (2 * self.crop_tokens,) * 2).transpose(1, 2).flatten(1, 2), rows, columns
    )


def separators_before_lines(lines):
    return lambda self, *arguments: lines(self, *arguments).roll(1, dims=0)


@pytest.mark.parametrize(
    ("method", "saboteur"),
    [
        ("forward", wrong_order),
        ("_lines", transposed_crops),
        ("_lines", transposed_merge),
        ("_lines", separators_before_lines),
    ],
)
def test_the_reference_rejects(backbone, reference, monkeypatch, method, saboteur):
    monkeypatch.setattr(PhiImageEmbedding, method, saboteur(getattr(PhiImageEmbedding, method)))
    with pytest.raises(AssertionError):
        check_against_reference(backbone, reference)


def test_the_reference_rejects_texts_tokenised_without_their_own_start(backbone, reference, monkeypatch):
    tokenize = PhiVisionBackbone._tokenize

    def without_second_start(self, prompts, counts):
        rows = tokenize(self, prompts, counts)
        second_start = [np.flatnonzero(mask)[-1] + 1 for _, mask in rows]
        return [tuple(np.delete(row, place) for row in pair) for pair, place in zip(rows, second_start, strict=True)]

    monkeypatch.setattr(PhiVisionBackbone, "_tokenize", without_second_start)
    with pytest.raises(AssertionError):
        check_against_reference(backbone, reference)


def test_batch_invariance_rejects_factors_shared_by_the_batch(backbone, monkeypatch):
    monkeypatch.setattr(RowwiseRotaryEmbedding, "forward", Phi3RotaryEmbedding.forward)
    with pytest.raises(AssertionError):
        check_batch_invariance(backbone)


def test_batch_invariance_rejects_positions_that_run_on_in_the_padding(backbone, monkeypatch):
    language_arguments = PhiVisionBackbone.language_arguments

    def running_on(self, inputs, visual_tokens):
        arguments = language_arguments(self, inputs, visual_tokens)
        places = torch.arange(inputs.input_ids.shape[1])
        return {**arguments, "position_ids": places.expand_as(inputs.input_ids)}

    monkeypatch.setattr(PhiVisionBackbone, "language_arguments", running_on)
    with pytest.raises(AssertionError):
        check_batch_invariance(backbone)


@pytest.mark.parametrize("length", [1, LIMIT - 1, LIMIT, LIMIT + 1, 3 * LIMIT])
def test_rotary_embedding_of_a_row_is_that_of_transformers(reference, backbone, length):
    ours, theirs = backbone.language_model.rotary_emb, Phi3RotaryEmbedding(reference.language_config())
    states, positions = torch.zeros(1, 3 * LIMIT, 32), torch.arange(3 * LIMIT)
    short, long = positions.clamp(max=5), positions.clamp(max=length - 1)
    mixed = ours(states, torch.stack([short, long]))
    for row, row_positions in enumerate((short, long)):
        for value, expected in zip(mixed, theirs(states, row_positions[None]), strict=True):
            torch.testing.assert_close(value[row], expected[0], atol=0, rtol=0)


def test_inputs(backbone, reference):
    inputs = backbone.prepare(make_images(SHAPES), PROMPTS)
    assert inputs.pixel_values.shape[1:] == (3, 28, 28)
    assert len(inputs.pixel_values) == sum(1 + rows * columns for rows, columns in inputs.extras["grids"])
    for row, prompt in enumerate(PROMPTS):
        before, after = reference.token_ids(prompt)
        ids = inputs.input_ids[row][inputs.attention_mask[row] & ~inputs.image_mask[row]].tolist()
        assert ids == before + after
        assert ids[0] == after[0] == backbone.tokenizer.bos_token_id
        place = inputs.last_token[row]
        assert inputs.input_ids[row, place] == backbone.tokenizer.eos_token_id
        assert inputs.image_mask[row, len(before)]
        assert not inputs.image_mask[row, : len(before)].any()


def test_prompts_and_images_change_the_state(backbone):
    images = make_images([(40, 40), (40, 40)])
    first, second, third = (
        run(backbone, [image], [prompt])[0][1][-1]
        for image, prompt in ((images[0], "a cat"), (images[0], "a dog"), (images[1], "a cat"))
    )
    assert (first - second).abs().max() > 0.05
    assert (first - third).abs().max() > 0.05


def test_gradient_with_respect_to_the_images_is_the_finite_difference(folder):
    backbone = PhiVisionBackbone.from_pretrained(folder, num_crops=4, torch_dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    shapes = ((40, 60), (50, 30))
    images = [torch.rand(3, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    directions = [torch.randn(3, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    weights = torch.randn(2, backbone.hidden_size, generator=generator, dtype=torch.float64)

    def value(step):
        moved = [image + step * direction for image, direction in zip(images, directions, strict=True)]
        inputs = backbone.prepare(moved, ["a cat", "birds"])
        visual = backbone.project(backbone.encode_images(inputs), inputs, backbone.projector)
        states = backbone.language_model(**backbone.language_arguments(inputs, visual)).last_hidden_state
        return (states[[0, 1], inputs.last_token] * weights).sum()

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(step), step)
    difference = (value(1e-3) - value(-1e-3)) / 2e-3  # the norms of transformers compute in float32
    assert gradient.abs() > 0.1
    torch.testing.assert_close(gradient, difference, rtol=1e-2, atol=0)


SIDES = (64, 65, 100, 128, 200, 255, 333, 336, 337, 500, 512, 640, 671, 768, 1000, 1024, 1344, 1536, 1920, 2048)
IMAGES_SHAPES = ((40, 40), (30, 75), (75, 30), (61, 43), (28, 84), (120, 110), (7, 61))


def official_size(height, width, num_crops):
    """Height and width after padding, as the official processor computes them."""
    if width < height:
        return official_size(width, height, num_crops)[::-1]
    scale = 1
    while scale * math.ceil(scale / (width / height)) <= num_crops:
        scale += 1
    new_width = (scale - 1) * 336
    return math.ceil(int(new_width / (width / height)) / 336) * 336, new_width


def official_num_tokens(height, width):
    return (height // 336 * (width // 336) + 1) * 144 + 1 + (height // 336 + 1) * 12


def official_crops(pixels, *, num_crops, size):
    """The processor's path through PIL, crop by crop; pixels (H, W, 3) uint8, result in units of [0, 1]."""
    image = Image.fromarray(pixels)
    portrait = image.width < image.height
    image = image.transpose(Image.Transpose.TRANSPOSE) if portrait else image
    ratio = image.width / image.height
    scale = 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    width = (scale - 1) * size
    height = int(width / ratio)
    canvas = Image.new("RGB", (width, math.ceil(height / size) * size), "white")
    canvas.paste(image.resize((width, height), Image.Resampling.BILINEAR), (0, int((canvas.height - height) / 2)))
    canvas = canvas.transpose(Image.Transpose.TRANSPOSE) if portrait else canvas
    whole = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None] / 255
    crops = [functional.interpolate(whole, (size, size), mode="bicubic")[0]]
    for top in range(0, canvas.height, size):
        crops += [whole[0, :, top : top + size, left : left + size] for left in range(0, canvas.width, size)]
    return torch.stack(crops)


def check_against_pil(transform, *, height, width):
    """In units of the input: PIL rounds twice, by 1/2 each; bicubic weights can enlarge that in the global crop."""
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    crops = transform(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    crops = crops * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    expected = official_crops(pixels, num_crops=transform.num_crops, size=transform.crop_size)
    assert crops.shape == expected.shape
    error = 255 * (crops - expected).abs()
    assert error[1:].max() <= 1.01
    assert error[0].max() <= 1.9
    assert error.mean() <= 0.45


@pytest.fixture(scope="module")
def full_size_embedding():
    """The image embedding of the hub's size, without storage."""
    processor = {**phi3_vision.CONFIG["img_processor"], "image_dim_out": 1024}
    config = PhiVisionConfig(img_processor=processor, embd_layer=phi3_vision.CONFIG["embd_layer"])
    with torch.device("meta"):
        return PhiImageEmbedding(config)


@pytest.mark.parametrize("num_crops", range(1, 17))
def test_sizes_and_numbers_of_tokens_follow_the_official_formulas(num_crops, full_size_embedding):
    transform = HDTransform(num_crops=num_crops)
    for height in SIDES:
        for width in SIDES:
            padded = official_size(height, width, num_crops)
            rows, columns = transform.grid(height, width)
            assert (rows * 336, columns * 336) == padded, (height, width)
            assert rows * columns <= num_crops
            assert full_size_embedding.num_tokens(rows, columns) == official_num_tokens(*padded)


@pytest.mark.parametrize(("num_crops", "tokens"), [(16, 2509), (4, 757)])
def test_known_numbers_of_tokens_of_a_square_image(num_crops, tokens, full_size_embedding):
    grid = HDTransform(num_crops=num_crops).grid(1024, 1024)
    assert full_size_embedding.num_tokens(*grid) == tokens


def test_portrait_is_the_mirror_of_landscape():
    transform = HDTransform(num_crops=6)
    assert transform.resized_shape(1000, 700) == transform.resized_shape(700, 1000)[::-1] == (672, 470)
    assert transform.grid(1000, 700) == (2, 2)
    assert transform.grid(2000, 700) == (3, 2)


@pytest.mark.parametrize("num_crops", [1, 4, 6, 16])
@pytest.mark.parametrize(("height", "width"), IMAGES_SHAPES)
def test_crops_agree_with_pil(height, width, num_crops):
    check_against_pil(HDTransform(num_crops=num_crops, crop_size=28), height=height, width=width)


@pytest.mark.parametrize(("height", "width", "num_crops"), [(300, 451, 4), (700, 400, 5)])
def test_crops_of_the_real_size_agree_with_pil(height, width, num_crops):
    check_against_pil(HDTransform(num_crops=num_crops), height=height, width=width)


class CropsByColumn(HDTransform):
    def __call__(self, image):
        crops = super().__call__(image)
        rows, columns = self.grid(*image.shape[-2:])
        return torch.cat([crops[:1], crops[1:].unflatten(0, (rows, columns)).transpose(0, 1).flatten(0, 1)])


class RotatedPortraits(HDTransform):
    def __call__(self, image):
        return super().__call__(image.rot90(dims=(1, 2))).rot90(-1, dims=(2, 3))


class GlobalCropFirstOfAll(HDTransform):
    def __call__(self, image):
        crops = super().__call__(image)
        small = functional.interpolate(image[None], (self.crop_size,) * 2, mode="bicubic", antialias=True)
        return torch.cat([self._normalize(small), crops[1:]])


class BlackPadding(HDTransform):
    def _pad(self, image):
        return 1 - super()._pad(1 - image)


class AliasedResize(HDTransform):
    def _resize(self, image):
        return functional.interpolate(image, self.resized_shape(*image.shape[-2:]), mode="bilinear")


@pytest.mark.parametrize(
    "saboteur", [CropsByColumn, RotatedPortraits, GlobalCropFirstOfAll, BlackPadding, AliasedResize]
)
def test_the_check_against_pil_rejects(saboteur):
    with pytest.raises(AssertionError):
        check_against_pil(saboteur(num_crops=6, crop_size=28), height=120, width=70)


def test_gradients_of_the_transform():
    transform = HDTransform(num_crops=4, crop_size=4)
    image = torch.rand(3, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert transform.grid(9, 5) == (2, 1)
    assert torch.autograd.gradcheck(transform, (image,))


def test_dtype_is_kept():
    assert HDTransform(num_crops=1, crop_size=8)(torch.rand(3, 9, 9, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("num_crops", [0, -1])
def test_a_budget_without_crops_is_refused(num_crops):
    with pytest.raises(ValueError, match="num_crops must be at least 1"):
        HDTransform(num_crops=num_crops)


def test_an_image_that_would_vanish_is_refused():
    with pytest.raises(ValueError, match="1 x 9000 pixels is too elongated"):
        HDTransform(num_crops=16).grid(1, 9000)


@pytest.mark.parametrize("shape", IMAGES_SHAPES)
def test_images_of_one_size_may_be_cut_together(shape):
    images = torch.rand(3, 3, *shape, generator=torch.Generator().manual_seed(0))
    transform = HDTransform(num_crops=4, crop_size=28)
    assert torch.equal(transform.batch(images), torch.stack([transform(image) for image in images]))


@pytest.fixture(scope="module")
def crops_backbone(tmp_path_factory):
    return PhiVisionBackbone.from_pretrained(write_phi3_vision(tmp_path_factory.mktemp("phi")), num_crops=4)


@pytest.mark.parametrize(
    ("grids", "encoded"), [([(1, 1)], 1), ([(1, 2)], 3), ([(1, 1), (1, 2), (2, 2), (1, 1)], 1 + 3 + 5 + 1)]
)
def test_an_image_of_one_crop_is_encoded_once(crops_backbone, grids, encoded):
    embedding = crops_backbone.model.vision_embed_tokens
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
def test_the_global_crop_is_the_only_crop(crops_backbone, shape):
    transform = PhiVisionBackbone(crops_backbone.model, crops_backbone.tokenizer, num_crops=1).hd_transform
    overview, crop = transform(torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(overview, crop)
