"""Bundled checkpoints, as safetensors files: data only, no code."""
