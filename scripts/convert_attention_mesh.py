"""MediaPipe's attention mesh, a TensorFlow Lite file with operators of its own -> `attention_mesh.onnx`.

    pip install tflite onnx
    python scripts/convert_attention_mesh.py face_landmark_with_attention.tflite attention_mesh.onnx

The file is in the PyPI package `mediapipe` 0.10.14, folder `modules/face_landmark` (Apache-2.0, Google; Grishchenko et al.,
*Attention Mesh*, 2020). Three of its operators are not part of TensorFlow Lite; they are composed of ONNX operators here:

    Landmarks2TransformMatrix   landmarks -> the square about some of them, turned with the face
    TransformTensorBilinear     the features in that square, (N, C, 16, 16)
    TransformLandmarks          points of the square -> points of the whole

On nine photographs the landmarks of MediaPipe itself and of the graph differ by at most a ten-thousandth of a pixel.

    image       (N, 192, 192, 3) RGB in 0…1
    landmarks   (N, 478, 3) in its pixels: 468 of the mesh, lips and eyes refined, then the right and the left iris, 5 points each
    presence    (N, 1) in 0…1
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import tflite
import typer
from flatbuffers import flexbuffers
from onnx import TensorProto, helper, numpy_helper

SIDE = 16  # of the feature maps for the networks of lips and eyes
TYPES = {0: np.float32, 1: np.float16, 2: np.int32}
BUILTINS = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
IRIS_DEPTH = [133] * 5 + [362] * 5  # the network gives irises no depth; they get that of the inner corners of their eyes


class Converter:
    """Converts the operators of a TensorFlow Lite graph, one by one, to nodes and weights of an ONNX graph."""

    def __init__(self, path: Path):
        self.model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
        self.graph = self.model.Subgraphs(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.constants: dict[int, np.ndarray] = {}  # weights that the file keeps as float16
        self.refined: list[list[int]] = []  # landmarks that each Landmarks2TransformMatrix looks at

    # Parts of the graph

    def constant(self, values, dtype=np.float32) -> str:
        """Add a weight; gives its name."""
        name = f"c{len(self.weights)}"
        self.weights[name] = np.ascontiguousarray(values, dtype)
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        """Add a node; gives the name of its output."""
        output = output or f"{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def part(self, points: str, first: int, last: int) -> str:
        """Slice first…last-1 of the last of three axes."""
        first, last, axis = (self.constant([value], np.int64) for value in (first, last, 2))
        return self.add("Slice", points, first, last, axis)

    def reshape(self, tensor: str, *shape: int) -> str:
        return self.add("Reshape", tensor, self.constant(shape, np.int64))

    def shape(self, tensor: int) -> list[int]:
        return self.graph.Tensors(tensor).ShapeAsNumpy().tolist()

    def values(self, tensor: int) -> np.ndarray:
        if tensor in self.constants:
            return self.constants[tensor]
        buffer = self.model.Buffers(self.graph.Tensors(tensor).Buffer()).DataAsNumpy().tobytes()
        return np.frombuffer(buffer, TYPES[self.graph.Tensors(tensor).Type()]).reshape(self.shape(tensor))

    # Operators of TensorFlow Lite; pictures are (N, C, H, W) here

    def convert(self, operator: tflite.Operator) -> None:
        code = self.model.OperatorCodes(operator.OpcodeIndex())
        name = BUILTINS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        name = code.CustomCode().decode() if name == "CUSTOM" else name
        inputs, output = operator.InputsAsNumpy().tolist(), operator.OutputsAsNumpy().tolist()[0]
        first, names = inputs[0], [f"t{tensor}" for tensor in inputs]
        match name:
            case "DEQUANTIZE":
                self.constants[output] = self.values(first).astype(np.float32)
                return
            case "CONV_2D" | "DEPTHWISE_CONV_2D":
                deep = name == "DEPTHWISE_CONV_2D"
                options = _options(operator, tflite.DepthwiseConv2DOptions if deep else tflite.Conv2DOptions)
                kernel = self.values(inputs[1]).transpose((3, 0, 1, 2) if deep else (0, 3, 1, 2))
                strides = [options.StrideH(), options.StrideW()]
                result = self.add(
                    "Conv", names[0], self.constant(kernel), self.constant(self.values(inputs[2])), strides=strides,
                    pads=self.pads(options, first, output, kernel.shape[2:], strides), group=len(kernel) if deep else 1,
                )  # fmt: skip
            case "MAX_POOL_2D":
                options = _options(operator, tflite.Pool2DOptions)
                kernel, strides = [options.FilterHeight(), options.FilterWidth()], [options.StrideH(), options.StrideW()]
                pads = self.pads(options, first, output, kernel, strides)
                result = self.add("MaxPool", names[0], kernel_shape=kernel, strides=strides, pads=pads)
            case "PRELU":
                result = self.prelu(names[0], self.values(inputs[1]).reshape(-1, 1, 1, 1))
            case "ADD":
                result = self.add("Add", *names)
            case "PAD":
                result = self.add("Pad", names[0], self.constant(self.values(inputs[1])[[0, 3, 1, 2]].T.ravel(), np.int64))
            case "RESHAPE":  # of 1x1 pictures, where the order of the axes does not matter
                shape = self.shape(output)
                result = self.reshape(names[0], -1, *(shape[1:] if len(shape) == 3 else [int(np.prod(shape))]))
            case "STRIDED_SLICE":  # all of it
                result = self.reshape(names[0], -1, int(np.prod(self.shape(output))))
            case "MUL":  # of matrices 4x4 of which the rows x and y, and the columns x, y and 1, are used
                factor = self.values(inputs[1])
                factor = factor[:, :2, [0, 1, 3]] if factor.shape[-2:] == (4, 4) else factor
                result = self.add("Mul", names[0], self.constant(factor))
            case "Landmarks2TransformMatrix":
                result = self.square(names[0], flexbuffers.Loads(bytes(operator.CustomOptionsAsNumpy())))
            case "TransformTensorBilinear":
                result = self.sampled(names[0], names[1], width=self.shape(first)[2])
            case "TransformLandmarks":
                turned = self.add("MatMul", names[0], self.add("Transpose", self.part(names[1], 0, 2), perm=[0, 2, 1]))
                result = self.add("Add", turned, self.add("Transpose", self.part(names[1], 2, 3), perm=[0, 2, 1]))
            case _:
                raise ValueError(f"The graph has an operator that this script does not know: {name}.")
        self.add("Identity", result, output=f"t{output}")

    def pads(self, options, source: int, target: int, kernel, strides) -> list[int]:
        """TensorFlow's padding "same" as numbers for ONNX."""
        if options.Padding() != tflite.Padding.SAME:
            return [0, 0, 0, 0]
        sizes = zip(self.shape(source)[1:3], self.shape(target)[1:3], kernel, strides, strict=True)
        total = [max((after - 1) * stride + size - before, 0) for before, after, size, stride in sizes]
        return [pad // 2 for pad in total] + [pad - pad // 2 for pad in total]

    def prelu(self, tensor: str, slopes: np.ndarray) -> str:
        """slope · x + (1 - slope) · ReLU(x), by convolutions, because onnxruntime takes twice the time with `PRelu`."""
        across = {"strides": [1, 1], "pads": [0, 0, 0, 0], "group": len(slopes)}
        linear = self.add("Conv", tensor, self.constant(slopes), **across)
        return self.add("Add", self.add("Conv", self.add("Relu", tensor), self.constant(1 - slopes), **across), linear)

    # MediaPipe's own

    def square(self, landmarks: str, options: dict) -> str:
        """The matrix `(N, 2, 3)` from pixels of the square to those of the whole; its x axis follows a line across the face."""
        self.refined.append(options["subset_idxs"])
        subset, left, right = (
            self.part(self.add("Gather", landmarks, self.constant(index, np.int64), axis=1), 0, 2)
            for index in (options["subset_idxs"], [options["left_rotation_idx"]], [options["right_rotation_idx"]])
        )
        along, last, middle = self.add("Sub", right, left), self.constant([2], np.int64), self.constant([1], np.int64)
        along = self.add("Div", along, self.add("ReduceL2", along, last, keepdims=1))  # (N, 1, 2)
        rows = self.add("Concat", along, self.add("MatMul", along, self.constant([[0, 1], [-1, 0]])), axis=1)
        columns = self.add("Transpose", rows, perm=[0, 2, 1])
        turned = self.add("MatMul", subset, columns)
        low, high = (self.add(reduction, turned, middle, keepdims=1) for reduction in ("ReduceMin", "ReduceMax"))
        centre = self.add("MatMul", self.add("Mul", self.add("Add", low, high), self.constant(0.5)), rows)
        margins = [options["scale_x"] / options["output_width"], options["scale_y"] / options["output_height"]]
        matrix = self.add("Mul", columns, self.add("Mul", self.add("Sub", high, low), self.constant(margins)))
        to_corner = self.add("MatMul", matrix, self.constant([[[SIDE / 2], [SIDE / 2]]]))
        corner = self.add("Sub", self.add("Transpose", centre, perm=[0, 2, 1]), to_corner)
        return self.add("Concat", matrix, corner, axis=2)

    def sampled(self, features: str, matrix: str, width: int) -> str:
        """Sample the features at the centres of the square's pixels."""
        rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
        pixels = self.constant(np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1))
        points = self.add("Transpose", self.add("MatMul", matrix, pixels), perm=[0, 2, 1])
        points = self.add("Sub", self.add("Mul", points, self.constant(2 / width)), self.constant(1))
        grid = self.reshape(points, -1, SIDE, SIDE, 2)
        return self.add("GridSample", features, grid, mode="bilinear", padding_mode="zeros", align_corners=0)

    # The whole

    def run(self) -> onnx.ModelProto:
        self.add("Transpose", "image", perm=[0, 3, 1, 2], output=f"t{self.graph.Inputs(0)}")
        for index in range(self.graph.OperatorsLength()):
            self.convert(self.graph.Operators(index))
        outputs = {self.graph.Tensors(tensor).Name().decode(): f"t{tensor}" for tensor in self.graph.OutputsAsNumpy().tolist()}
        lips, *eyes = self.refined  # the person's right eye is on the left
        mesh = self.reshape(outputs["output_mesh_identity"], -1, 468, 3)
        sizes = {"lips": len(lips), "left_eye": len(eyes[0]), "right_eye": len(eyes[1]), "left_iris": 5, "right_iris": 5}
        parts = [self.reshape(outputs[f"output_{name}"], -1, size, 2) for name, size in sizes.items()]
        source, start = np.arange(478), 468
        for subset in (lips, *eyes, range(468, 473), range(473, 478)):
            source[list(subset)] = start + np.arange(len(subset))
            start += len(subset)
        everything = self.add("Concat", self.part(mesh, 0, 2), *parts, axis=1)
        across = self.add("Gather", everything, self.constant(source, np.int64), axis=1)
        depth = self.add("Gather", self.part(mesh, 2, 3), self.constant([*range(468), *IRIS_DEPTH], np.int64), axis=1)
        self.add("Concat", across, depth, axis=2, output="landmarks")
        self.add("Sigmoid", self.reshape(outputs["conv_faceflag"], -1, 1), output="presence")

        shapes = {"image": ["batch", 192, 192, 3], "landmarks": ["batch", 478, 3], "presence": ["batch", 1]}
        image, *results = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
        weights = [numpy_helper.from_array(values, name) for name, values in self.weights.items()]
        graph = helper.make_graph(self.nodes, "attention_mesh", [image], results, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def _options(operator: tflite.Operator, kind: type):
    """The options of an operator. Fused activations do not occur in this file."""
    options = kind()
    options.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
    if options.FusedActivationFunction() != tflite.ActivationFunctionType.NONE:
        raise ValueError("The graph has an activation within an operator, which this script does not know.")
    return options


def main(
    source: Annotated[Path, typer.Argument(help="face_landmark_with_attention.tflite")],
    target: Annotated[Path, typer.Argument(help="The ONNX file to write.")] = Path("attention_mesh.onnx"),
) -> None:
    """Convert the graph."""
    onnx.save(Converter(source).run(), target)


if __name__ == "__main__":
    typer.run(main)
