"""Preprocessing as torchvision does it to PIL pictures, done to tensors."""

from __future__ import annotations

from dataclasses import dataclass

from fk_reward.rewards.preprocessing import ImagePreprocessing


@dataclass(frozen=True, kw_only=True)
class TorchvisionPreprocessing(ImagePreprocessing):
    """torchvision's `Resize`, `CenterCrop` and `Normalize`.

    They differ from transformers' processor in one thing: where the margin to cut is odd, the crop begins at half of it
    rounded to the nearest even number, not down.

    Example:
        >>> import torch
        >>> preprocessing = TorchvisionPreprocessing(size=4, crop_size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
        >>> columns = torch.arange(7).expand(1, 3, 4, 7) / 7
        >>> (7 * preprocessing(columns))[0, 0, 0].round().tolist()  # 2 of 3 columns are cut on the left
        [2.0, 3.0, 4.0, 5.0]
    """

    @classmethod
    def of_clip(cls, size: int) -> TorchvisionPreprocessing:
        """Resize the shorter side to `size`, bicubic, cut the central square, normalise as CLIP does.

        Example:
            >>> TorchvisionPreprocessing.of_clip(224).crop_size
            (224, 224)
        """
        settings = ImagePreprocessing.from_config({"size": size, "crop_size": size})
        return cls(**vars(settings))

    def _begin(self, margin: int) -> int:
        return round(margin / 2)
