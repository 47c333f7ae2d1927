"""Store the weights of ONNX graphs in half of the room."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGE = 64  # elements from which on a weight is kept as float16; smaller ones hold sizes and scales, which must stay constants


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large weights as float16; they become float32 when it is loaded."""
    casts = []
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.dtype == np.float32 and values.size >= LARGE:
            name = initializer.name
            initializer.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model
