"""The fingerprint of a transformers model: what must be equal for two processes to share KV."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
import transformers

from kelvin.identity import Fingerprint
from kelvin.weights import config_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kelvin.hf.layout import Layout

SAMPLES = 256
"""Elements looked at of each weight. Training moves nearly all elements of a weight that it moves at all."""


def weights_digest(model: PreTrainedModel) -> str:
    """Digest of every weight's name, shape, type and a sample of its elements, evenly spaced. Lowercase hex."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tuple(weight.shape)}\0{weight.dtype}\0".encode())
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES)
        sample = flat[::step][:SAMPLES].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint(model: PreTrainedModel, layout: Layout) -> Fingerprint:
    """The model's fingerprint with blocks of this layout."""
    return Fingerprint(
        model_digest=weights_digest(model),
        engine="transformers",
        engine_build=transformers.__version__.split(".")[0],
        layout=layout.name,
        dtype=str(layout.dtype).removeprefix("torch."),
        attributes={"config": config_digest(model.config.to_dict())},
    )
