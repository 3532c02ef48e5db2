"""From the answers of Mask2Former's queries to objects."""

from __future__ import annotations

import torch
from torch import Tensor

from fk_reward.benchmarks.geneval.detection import THRESHOLD, Box, Detection
from fk_reward.benchmarks.geneval.frame import Frame


def find_instances(
    class_logits: Tensor, mask_logits: Tensor, frame: Frame, *, min_score: float = THRESHOLD
) -> list[tuple[int, Detection]]:
    """Read the objects of one picture from Mask2Former's output.

    As `instance_postprocess` of mmdetection's `MaskFormerFusionHead`: of all pairs of query and class the Q of highest
    probability; the mask is where its logit, brought to the size of the picture, is positive; the score is the
    probability of the class times the mean probability of the pixels of the mask; the box just holds the mask. As no
    score exceeds its probability, masks of less probable pairs are never made.

    transformers' `post_process_instance_segmentation` does the same at 384 x 384 and brings the masks to the size of
    the picture by nearest neighbour, which moves boxes by a pixel or two.

    Args:
        class_logits: (Q, C + 1), the last class being no object.
        mask_logits: (Q, h, w), of the padded input in some resolution.
        frame: sizes of picture and input.
        min_score: only objects of higher score are made.

    Returns:
        Class and detection, masks on the CPU; a query can stand for several classes.

    Example:
        >>> classes = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
        >>> masks = torch.full((2, 8, 8), -9.0)
        >>> masks[0, 2:4, 2:6] = 9.0
        >>> [(label, found.box) for label, found in find_instances(classes, masks, Frame((32, 32), (32, 32)))]
        [(0, (8.0, 8.0, 24.0, 16.0))]

    Q: queries, C: classes, h, w: resolution of the masks.
    """
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]
    num_queries, num_classes = probabilities.shape
    top, order = probabilities.flatten().topk(num_queries)
    order = order[top > min_score]
    queries, labels = order // num_classes, order % num_classes
    logits = frame.restore(mask_logits[queries].float()) if len(order) else mask_logits.new_zeros(0, *frame.picture)
    masks = logits > 0
    sizes = masks.sum(dim=(1, 2))
    scores = probabilities[queries, labels] * (logits.sigmoid() * masks).sum(dim=(1, 2)) / (sizes + 1e-6)
    rows = zip(labels.tolist(), scores.tolist(), masks.cpu(), strict=True)
    return [(label, Detection(_box(mask), score, mask)) for label, score, mask in rows if score > min_score]


def _box(mask: Tensor) -> Box:
    """The least box around the pixels of a mask (H, W) that has some."""
    columns, rows = (mask.any(dim=dim).nonzero().flatten() for dim in (0, 1))
    x0, y0, x1, y1 = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).tolist()
    return float(x0), float(y0), float(x1), float(y1)
