"""A stand-in for TensorRT-LLM, which can't be installed without a GPU: the names that its connectors meet.

Written from TensorRT-LLM's documentation of release 1.2, for type checks and for `trtllm_harness`; no code of its.
"""

__version__ = "1.2.1"
