"""Which weights a model has, told from its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

SAMPLE_BYTES = 4096
SAMPLES = 64
"""Samples a weight file, evenly spaced, besides its start; the last is its end."""


def model_digest(model: str, revision: str | None = None) -> str:
    """Digest of a model's weight files: names, sizes and samples of each; of its name where there are none.

    Lowercase hex.
    """
    digest = hashlib.blake2b(digest_size=16)
    directory = Path(model)
    if not directory.is_dir():
        try:
            from huggingface_hub import snapshot_download

            directory = Path(snapshot_download(model, revision=revision, local_files_only=True))
        except Exception:  # noqa: BLE001 - whatever the hub's client raises, the name has to do
            digest.update(f"{model}\0{revision}".encode())
            return digest.hexdigest()
    files = [
        path for suffix in ("safetensors", "bin", "gguf", "pt") for path in directory.glob(f"*.{suffix}")
    ]
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES + 1):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    if not files:
        digest.update(f"{model}\0{revision}".encode())
    return digest.hexdigest()
