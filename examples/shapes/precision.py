"""Whether bfloat16 is worth it on this machine."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: str) -> bool:
    """Whether a "cuda" or "cpu" computes in bfloat16 itself; one that does not takes up to fifteen times as long."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
