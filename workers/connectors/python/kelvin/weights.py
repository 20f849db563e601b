"""Which model it is, told from its files and its configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLE_BYTES = 4096
SAMPLES = 64
"""Samples a weight file, evenly spaced, besides its start; the last is its end."""

_VOLATILE = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "name_or_path")
"""What a configuration says that does not change the KV."""


def config_digest(config: Mapping[str, Any]) -> str:
    """Digest of a model's configuration, as far as it can change the KV (rope, norms, windows, ...). Lowercase hex."""
    fields = {
        name: value for name, value in config.items() if not name.startswith("_") and name not in _VOLATILE
    }
    text = json.dumps(fields, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
