"""Exponential moving average of weights."""

import copy

import torch
from torch import nn


class AveragedModel:
    """A copy of `model` with averaged weights; the decay of the average ramps up to `decay` as (1 + step) / (10 + step)."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.step = copy.deepcopy(model).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module):
        self.step += 1
        weight = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict):
        self.model.load_state_dict(state["model"])
        self.step = state["step"]
