"""The face analyser's `attention_mesh.onnx` in torch: it computes the same, but differentiably and on any device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffdeid.errors import ConfigurationError
from diffdeid.models.face_analyser import MESH_SIZE

ROOM = 1 / 8  # of a crop, added on every side: faces then have the size that the mesh was trained on


class AttentionMesh(nn.Module):
    """Aligned crops -> the marks of their faces, in the order of `place_marks`.

    Args:
        path: the graph (scripts/convert_attention_mesh.py).

    Raises:
        ConfigurationError: the package `onnx` is missing.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        try:
            import onnx
            from onnx import helper, numpy_helper
        except ModuleNotFoundError as error:
            raise ConfigurationError("`landmark_weight` needs onnx, which is missing: pip install 'diffdeid[train]'.") from error
        graph = onnx.load(path).graph
        self.nodes = []
        for node in graph.node:
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
            self.nodes.append((node.op_type, list(node.input), node.output[0], attributes))
        gathered = {node.input[1] for node in graph.node if node.op_type == "Gather"}
        self.shapes: dict[str, list[int]] = {}  # constants such as axes and shapes, which are not tensors to compute with
        for initializer in graph.initializer:
            values = numpy_helper.to_array(initializer)
            if values.dtype == np.int64 and initializer.name not in gathered:
                self.shapes[initializer.name] = values.tolist()
            else:
                self.register_buffer(initializer.name, torch.from_numpy(values.copy()))

    def forward(self, crops: Tensor) -> Tensor:
        """Landmarks and the centres of both irises, `(B, 470, 2)`, in pixels of the crops `(B, 3, S, S)` in [-1, 1]."""
        with torch.autocast(crops.device.type, enabled=False):  # bfloat16 cannot tell neighbouring pixels apart
            return self._look(crops.float())

    def _look(self, crops: Tensor) -> Tensor:
        room = round(ROOM * crops.shape[-1])
        padded = F.pad(crops, [room] * 4, mode="replicate")
        seen = F.interpolate(padded, MESH_SIZE, mode="bilinear", align_corners=False, antialias=True)
        values = {"image": (seen.permute(0, 2, 3, 1) + 1) / 2} | dict(self.named_buffers()) | self.shapes
        for operator, inputs, output, attributes in self.nodes:
            values[output] = _run(operator, [values[name] for name in inputs], attributes)
        points = values["landmarks"][..., :2] * (padded.shape[-1] / MESH_SIZE) - room
        return torch.cat([points[:, :468], points[:, 468::5]], dim=1)  # an iris has five points, its centre first


def _run(operator: str, inputs: list, attributes: dict) -> Tensor:
    """Run one operator of ONNX, as far as this graph uses it."""
    x, *rest = inputs
    match operator:
        case "Identity":
            return x
        case "Conv":
            top, left, bottom, right = attributes["pads"]
            padded = F.pad(x, (left, right, top, bottom))
            return F.conv2d(padded, *rest, stride=attributes["strides"], groups=attributes["group"])
        case "MaxPool":
            return F.max_pool2d(x, attributes["kernel_shape"], attributes["strides"])
        case "Relu":
            return x.relu()
        case "Sigmoid":
            return x.sigmoid()
        case "Add":
            return x + rest[0]
        case "Sub":
            return x - rest[0]
        case "Mul":
            return x * rest[0]
        case "Div":
            return x / rest[0]
        case "MatMul":
            return x @ rest[0]
        case "ReduceL2":
            return x.norm(dim=rest[0], keepdim=True)
        case "ReduceMin":
            return x.amin(rest[0], keepdim=True)
        case "ReduceMax":
            return x.amax(rest[0], keepdim=True)
        case "Concat":
            return torch.cat(inputs, attributes["axis"])
        case "Gather":
            return x[:, rest[0]]
        case "Slice":
            (first,), (last,), (axis,) = rest
            return x.narrow(axis, first, last - first)
        case "Pad":  # channels
            return F.pad(x, [pad for axis in (3, 2, 1, 0) for pad in (rest[0][axis], rest[0][axis + 4])])
        case "Reshape":
            return x.reshape(rest[0])
        case "Transpose":
            return x.permute(attributes["perm"])
        case "GridSample":
            return F.grid_sample(x, rest[0], align_corners=False)
        case _:
            raise NotImplementedError(f"The graph has an operator that is not supported: {operator}.")
