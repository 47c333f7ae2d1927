"""Downloading pipelines from the Hub, and choosing their precision.

diffusers' `download` refuses a repository whose components come from another package, unless remote code is trusted. Ours are
in this package, so there is nothing to trust: we replace that one method, and download data only.
"""

from __future__ import annotations

import torch
from huggingface_hub import snapshot_download


class SafeHubMixin:
    """Downloads data only. It must come before `DiffusionPipeline` in the bases of a pipeline."""

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        """Download configs, safetensors (those of `variant`, if given) and ONNX graphs; no code, no pickles.

        Returns:
            The folder of the downloaded files.
        """
        variant = kwargs.get("variant")
        weights = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"] if variant else ["*.safetensors"]
        keep = {name: kwargs[name] for name in ("revision", "cache_dir", "token", "force_download") if name in kwargs}
        return snapshot_download(
            pretrained_model_name,
            allow_patterns=["*.json", "*.txt", "*.onnx", *weights],
            local_files_only=bool(kwargs.get("local_files_only")),
            **keep,
        )


def precisions(device: str, denoiser: torch.dtype | None = None) -> dict[str, torch.dtype]:
    """The `dtype` argument for `from_pretrained`: `denoiser` for what paints, float32 for all that finds and judges.

    Args:
        device: where the pipeline will be.
        denoiser: precision of the U-Net and the refiner. `None` means bfloat16 on processors that have units for it, which takes
            about half of the time and changes pixels by a grey level, and float32 elsewhere: there, bfloat16 takes 10 times
            longer.
    """
    if denoiser is None:
        if torch.device(device).type == "cuda":
            has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            units = getattr(torch.cpu, "get_capabilities", dict)() if device == "cpu" else {}  # older torch does not tell
            has_units = units.get("avx512_bf16") or units.get("amx_bf16")
        denoiser = torch.bfloat16 if has_units else torch.float32
    return {"unet": denoiser, "refiner": denoiser, "default": torch.float32}
