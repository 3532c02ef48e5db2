"""Trains the UNet and the text encoder of `shapes-sd` on whitened latents, and puts the pipeline together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cyclopts
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from fit import FitConfig, fit, save_pipeline
from safetensors.torch import load_file
from scene_data import TensorsDataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fk_reward.shapes import all_prompts, is_heldout
from fk_reward.shapes.scene import RELATIONS

TEXT_WIDTH = 160


def make_unet() -> UNet2DConditionModel:
    """The denoiser, untrained."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A text tower for the grammar's short sentences."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM with Stable Diffusion's noise schedule, but more of it; trains and samples."""
    # Stable Diffusion's own end, 0.012, leaves a signal-to-noise ratio of .0047 an element at the last step: enough to
    # tell where the objects are. A model trained so reads the layout off the noise and not off the prompt, and at the
    # start of sampling there is none to read (https://arxiv.org/abs/2305.08891). Here .00004 is left.
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.025,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


CAPTION_SHARES = {"single_object": 1, "two_object": 1, "counting": 2, "colors": 1, "position": 4, "color_attr": 2}
"""How often a sentence of each task is taken, of the true ones of a scene."""


@dataclass(frozen=True, kw_only=True)
class PositionEmphasis:
    """What is asked about relations beside the velocity.

    Attributes:
        share: Of the sentences of position among the captions.
        text: Weight of reading the relation off the text encoder's state of the last noun.
        contrast: Weight of explaining a noisy scene better than the sentence of the opposite relation does.
    """

    share: float = CAPTION_SHARES["position"]
    text: float = 0.0
    contrast: float = 0.0


CONTRAST_STEPS = (450, 800)
"""Where an image gets its layout: at more noise a caption is worth little, and at less the layout is seen."""

CONTRAST_MARGIN = 0.02
"""Of the error of a velocity. Without the contrast that of a reversed caption is .0001 larger, with it .1."""


class DiffusionObjective(nn.Module):
    """Mean squared error of the predicted velocity; a tenth of the prompts is dropped for classifier-free guidance.

    By that error alone nearly all images have the right axis of a relation and half of them the right direction, after
    10,000 steps as after 2,000: left and right differ only in the order of two words, for which the text encoder has
    the same states until the UNet asks for it, and the UNet reads the layout off the noisy image. `emphasis` asks both:
    the text encoder first, as a contrast of equal states has no gradient.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokens: Tensor,
        emphasis: PositionEmphasis,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.scheduler = unet, text_encoder, make_scheduler()
        self.emphasis = emphasis
        self.register_buffer("tokens", tokens, persistent=False)  # one row a prompt, the empty prompt last
        self.register_buffer("shares", caption_shares(emphasis.share), persistent=False)
        self.register_buffer("opposites", opposite_prompts(), persistent=False)
        self.relation = nn.Linear(text_encoder.config.hidden_size, len(RELATIONS))
        names = list(RELATIONS)
        named = [names.index(prompt.relation) if prompt.relation else -1 for prompt in all_prompts()]
        self.register_buffer("relations", torch.tensor([*named, -1]), persistent=False)
        ends = tokens == text_encoder.config.eos_token_id
        self.register_buffer("last_words", ends.int().argmax(dim=1) - 1, persistent=False)

    def forward(self, latents: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        """Noises `(B, 4, 16, 16)` latents at random steps.

        Args:
            latents: Whitened latents of scenes.
            prompts: `(B, P)`, indices into the grammar of the prompts that are true of each scene, padded with -1.
        """
        batch, latents = len(latents), latents.float()
        dropped = torch.rand(batch, device=latents.device) < 0.1
        rows = torch.where(dropped, len(self.tokens) - 1, one_caption(prompts, self.shares))
        context = self.text_encoder(self.tokens[rows]).last_hidden_state
        noise = torch.randn_like(latents)
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (batch,), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, steps)
        velocity = self.scheduler.get_velocity(latents, noise, steps)
        error = self.unet(noisy, steps, encoder_hidden_states=context).sample - velocity
        loss = error.square().mean()
        if self.emphasis.text:
            loss = loss + self.emphasis.text * self.relation_error(context, rows)
        if self.emphasis.contrast:
            loss = loss + self.emphasis.contrast * self.contrast(latents, rows)
        return {"loss": loss}

    def relation_error(self, context: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy of the relation that is read off the last noun's state, of the sentences that have one."""
        logits = self.relation(context[torch.arange(len(rows)), self.last_words[rows]])
        found = functional.cross_entropy(logits, self.relations[rows], ignore_index=-1, reduction="sum")
        return found / len(rows)

    def contrast(self, latents: Tensor, rows: Tensor) -> Tensor:
        """How far a noisy scene is from being explained better by its caption than by one of the opposite relation."""
        placed = (self.opposites[rows] >= 0).nonzero()[:, 0]
        if not len(placed):
            return latents.new_zeros(())
        latents, rows = latents[placed], rows[placed]
        noise = torch.randn_like(latents)
        steps = torch.randint(*CONTRAST_STEPS, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, steps).repeat(2, 1, 1, 1)
        velocity = self.scheduler.get_velocity(latents, noise, steps).repeat(2, 1, 1, 1)
        context = self.text_encoder(self.tokens[torch.cat([rows, self.opposites[rows]])]).last_hidden_state
        error = self.unet(noisy, steps.repeat(2), encoder_hidden_states=context).sample - velocity
        true, reversed_ = error.square().mean(dim=(1, 2, 3)).chunk(2)
        return CONTRAST_MARGIN * functional.softplus((true - reversed_) / CONTRAST_MARGIN).mean()


def caption_shares(position: float = CAPTION_SHARES["position"]) -> Tensor:
    """How often each prompt of the grammar is taken, of those that are true of a scene; held-out ones never."""
    of_task = CAPTION_SHARES | {"position": position}
    return torch.tensor([0.0 if is_heldout(prompt) else of_task[prompt.task] for prompt in all_prompts()])


def one_caption(prompts: Tensor, shares: Tensor) -> Tensor:
    """One of the true prompts of each scene, at random.

    Args:
        prompts: `(B, P)`, indices into the grammar, padded with -1, as `make_scenes.py latents` writes them.
        shares: of `caption_shares`.
    """
    # Half a dozen sentences are true of a scene with two objects. All of them are used: "a star left of a cross"
    # and "a cross right of a star", of the same image, say what the words mean.
    prompts = prompts.long()
    weights = torch.where(prompts >= 0, shares[prompts], 0.0)
    return prompts.gather(1, torch.multinomial(weights, 1))[:, 0]


def opposite_prompts() -> Tensor:
    """Which prompt has the opposite relation; -1 where there is none to train on, and for the empty prompt."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    prompts = all_prompts()
    number = {prompt: index for index, prompt in enumerate(prompts)}
    reversed_ = [replace(prompt, relation=opposite[prompt.relation]) if prompt.relation else None for prompt in prompts]
    return torch.tensor([-1 if prompt is None or is_heldout(prompt) else number[prompt] for prompt in reversed_] + [-1])


def tokenize_all(tokenizer: CLIPTokenizer) -> Tensor:
    """Tokens of every prompt of the grammar and of the empty prompt, padded as StableDiffusionPipeline does."""
    texts = [*(prompt.text for prompt in all_prompts()), ""]
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def encode_all(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> Tensor:
    """What a UNet attends to, of every prompt of the grammar and of the empty prompt, which is the last."""
    return torch.cat([text_encoder(rows).last_hidden_state for rows in tokenize_all(tokenizer).split(64)])


def assemble(vae: AutoencoderKL, objective: DiffusionObjective, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """Puts the trained parts into a pipeline."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=objective.text_encoder,
        tokenizer=tokenizer,
        unet=objective.unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


app = cyclopts.App()


def make_objective(
    tokenizer: CLIPTokenizer, start_from: Path | None = None, emphasis: PositionEmphasis | None = None
) -> DiffusionObjective:
    """The UNet and the text encoder, untrained or those of a pipeline."""
    if start_from is None:
        unet, text_encoder = make_unet(), CLIPTextModel(make_text_config(tokenizer))
    else:
        unet = UNet2DConditionModel.from_pretrained(start_from, subfolder="unet")
        text_encoder = CLIPTextModel.from_pretrained(start_from / "text_encoder")
    return DiffusionObjective(unet, text_encoder, tokenize_all(tokenizer), emphasis or PositionEmphasis())


@app.default
def main(  # noqa: PLR0913, PLR0917 (a command's options)
    tokenizer: Path = Path("runs/tokenizer"),
    whitened: Path = Path("runs/whitened"),
    output_dir: Path = Path("runs/unet"),
    max_steps: int = 6000,
    decay_steps: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    save_steps: int = 100,
    milestone: int | None = None,
    start_from: Path | None = None,
    position_share: float = CAPTION_SHARES["position"],
    position_text: float = 0.0,
    position_contrast: float = 0.0,
    resume: bool = False,
) -> None:
    """Trains on the latents that `make_scenes.py latents` wrote and saves the pipeline in `shapes-sd`.

    Args:
        tokenizer: Folder of the tokenizer.
        whitened: Folder of the latents and of the VAE that they are of.
        output_dir: Where checkpoints and the pipeline go.
        max_steps: Steps.
        decay_steps: The last of them, over which the learning rate falls to zero; a sixteenth of all by default.
        batch_size: Scenes in a step.
        learning_rate: Until it falls.
        seed: Of weights, order and noise.
        save_steps: Steps between checkpoints.
        milestone: Step at which the average is kept for good.
        start_from: Folder of a pipeline to train on.
        position_share: Of the sentences of position among the captions.
        position_text: Weight of reading the relation off the text encoder's state of the last noun.
        position_contrast: Weight of explaining a noisy scene better than the sentence of the opposite relation does.
        resume: Go on from the last checkpoint.
    """
    torch.manual_seed(seed)
    emphasis = PositionEmphasis(share=position_share, text=position_text, contrast=position_contrast)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    objective = make_objective(words, start_from, emphasis)
    dataset = TensorsDataset(**load_file(whitened / "latents.safetensors"))
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        ema_decay=0.999,
        decay_steps=max_steps // 16 if decay_steps is None else decay_steps,
        save_steps=save_steps,
        milestone=milestone,
        resume=resume,
    )
    if fit(objective, dataset, config):
        pipe = assemble(AutoencoderKL.from_pretrained(whitened / "vae"), objective, words)
        save_pipeline(pipe, output_dir / "shapes-sd")


@app.command
def export(
    average: Path, output: Path, tokenizer: Path = Path("runs/tokenizer"), vae: Path = Path("runs/whitened/vae")
) -> None:
    """Puts the pipeline together as it was at a milestone or checkpoint of the training.

    Args:
        average: `milestone.safetensors` of the training, or `ema.pt` of a checkpoint.
        output: Folder of the pipeline.
        tokenizer: Folder of its tokenizer.
        vae: Folder of its whitened VAE.
    """
    words = CLIPTokenizer.from_pretrained(tokenizer)
    objective = make_objective(words)
    parameters = dict(objective.named_parameters())
    if average.suffix == ".pt":
        shadow = torch.load(average, weights_only=True)["shadow_params"]
        weights = dict(zip(parameters, shadow, strict=True))
    else:
        weights = load_file(average)
    for name, weight in weights.items():
        parameters[name].data = weight
    save_pipeline(assemble(AutoencoderKL.from_pretrained(vae), objective, words), output)


if __name__ == "__main__":
    app()
