"""Fetching pipelines from the Hub.

diffusers' `download` refuses a repository whose components come from another package, unless remote code is trusted. Ours are
in this package, so there is nothing to trust: we replace that one method, and fetch data only.
"""

from __future__ import annotations

from huggingface_hub import snapshot_download


class SafeHubMixin:
    """Goes before `DiffusionPipeline` in the bases of our pipelines."""

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        """Fetch configs, safetensors (those of `variant`, where it is given) and ONNX graphs: no code, no pickles."""
        variant = kwargs.get("variant")
        weights = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else ["*.safetensors"]
        keep = {name: kwargs[name] for name in ("revision", "cache_dir", "token", "force_download") if name in kwargs}
        return snapshot_download(
            pretrained_model_name,
            allow_patterns=["*.json", "*.txt", "*.onnx", *weights],
            local_files_only=bool(kwargs.get("local_files_only")),
            **keep,
        )
