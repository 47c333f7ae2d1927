"""Loading that refuses weights which do not fit.

diffusers loads a checkpoint with missing tensors and leaves the gaps random or on the meta device, with only a log line. A
de-identifier with a zeroed basis still returns a picture, so all our models raise instead. This is the only reason to override
`from_pretrained`, against diffusers' habits.
"""

import torch
from diffusers import ModelMixin

from diffdeid.errors import ConfigurationError


class StrictModelMixin(ModelMixin):
    """`ModelMixin` whose `from_pretrained` accepts exactly the tensors that the model has."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, output_loading_info=False, **kwargs):
        """As `ModelMixin.from_pretrained`; raises `ConfigurationError` for missing or unexpected tensors."""
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        if info["missing_keys"] or info["unexpected_keys"]:
            raise ConfigurationError(
                f"The weights in `{pretrained_model_name_or_path}` do not fit `{cls.__name__}`: "
                f"missing {sorted(info['missing_keys'])}, unexpected {sorted(info['unexpected_keys'])}. "
                "Use the weights and the config of one release."
            )
        model.to(memory_format=torch.channels_last)  # convolutions on CPUs take a tenth less
        return (model, info) if output_loading_info else model
