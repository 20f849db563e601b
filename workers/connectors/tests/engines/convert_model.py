"""Turns a GGUF file into a directory that transformers and vLLM load: MODEL.gguf DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: Path, target: Path) -> None:
    """Dequantises to bfloat16; `model.safetensors` is written last, so its presence says that all is there."""
    # The class was renamed between releases.
    config = getattr(transformers, "GgufConfig", None) or transformers.GGUFConfig
    target.mkdir(parents=True, exist_ok=True)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=config(dequantize=True),
        dtype=torch.bfloat16,
    )
    # Some releases leave a note of what it was made from, which would make a loader look for quantised tensors.
    vars(model.config).pop("quantization_config", None)
    model.save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
