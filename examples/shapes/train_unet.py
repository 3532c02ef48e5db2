"""Trains the UNet and the text encoder of `shapes-sd` on whitened latents, and puts the pipeline together."""

from __future__ import annotations

from pathlib import Path

import cyclopts
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from fit import FitConfig, fit, save_pipeline
from safetensors.torch import load_file
from scene_data import TensorsDataset
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fk_reward.shapes import all_prompts


def make_unet() -> UNet2DConditionModel:
    """The denoiser, untrained."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A text tower for the grammar's short sentences."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM with Stable Diffusion's noise schedule; trains and samples."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


class DiffusionObjective(nn.Module):
    """Mean squared error of the predicted velocity; a tenth of the prompts is dropped for classifier-free guidance."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokens: Tensor) -> None:
        super().__init__()
        self.unet, self.text_encoder, self.scheduler = unet, text_encoder, make_scheduler()
        self.register_buffer("tokens", tokens, persistent=False)  # one row a prompt, the empty prompt last

    def forward(self, latents: Tensor, prompts: Tensor) -> dict[str, Tensor]:
        """Noises `(B, 8, 8, 8)` latents at random steps; `prompts` are `(B,)` indices into the grammar."""
        batch = len(latents)
        dropped = torch.rand(batch, device=latents.device) < 0.1
        rows = torch.where(dropped, len(self.tokens) - 1, prompts.int())
        context = self.text_encoder(self.tokens[rows]).last_hidden_state
        noise = torch.randn_like(latents)
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (batch,), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, steps)
        velocity = self.scheduler.get_velocity(latents, noise, steps)
        error = self.unet(noisy, steps, encoder_hidden_states=context).sample - velocity
        return {"loss": error.square().mean()}


def tokenize_all(tokenizer: CLIPTokenizer) -> Tensor:
    """Tokens of every prompt of the grammar and of the empty prompt, padded as StableDiffusionPipeline does."""
    texts = [*(prompt.text for prompt in all_prompts()), ""]
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


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


def main(  # noqa: PLR0913, PLR0917 (a command's options)
    tokenizer: Path = Path("runs/tokenizer"),
    whitened: Path = Path("runs/whitened"),
    text_encoder: Path | None = None,
    output_dir: Path = Path("runs/unet"),
    max_steps: int = 12000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    save_steps: int = 100,
    resume: bool = False,
) -> None:
    """Trains on the latents that `encode_scenes.py` wrote and saves the pipeline in `shapes-sd`."""
    torch.manual_seed(seed)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    text_model = CLIPTextModel.from_pretrained(text_encoder) if text_encoder else CLIPTextModel(make_text_config(words))
    objective = DiffusionObjective(make_unet(), text_model, tokenize_all(words))
    dataset = TensorsDataset(**load_file(whitened / "latents.safetensors"))
    config = FitConfig(
        output_dir=output_dir,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        ema_decay=0.999,
        warmup_steps=min(100, max_steps // 4),
        decay_steps=max_steps // 4,
        save_steps=save_steps,
        resume=resume,
    )
    if fit(objective, dataset, config):
        pipe = assemble(AutoencoderKL.from_pretrained(whitened / "vae"), objective, words)
        save_pipeline(pipe, output_dir / "shapes-sd")


if __name__ == "__main__":
    cyclopts.run(main)
