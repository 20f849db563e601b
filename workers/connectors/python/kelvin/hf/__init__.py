"""Hugging Face transformers 5: a model's `generate` finds the KV of stored prompt prefixes.

>>> from kelvin.hf import KelvinCache
>>> with KelvinCache(model, kelvin.Client()) as cache:
...     sequences = cache.generate(input_ids, max_new_tokens=64)
"""

from __future__ import annotations

from kelvin.hf.cache import KelvinCache, Report
from kelvin.hf.layout import Unsupported

__all__ = ["KelvinCache", "Report", "Unsupported"]
