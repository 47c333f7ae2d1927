"""Third-party networks that judge faces -> `weights/evaluators`.

    python scripts/convert_evaluators.py --assets ASSETS --efficientnet efficientnet-lite0-57934424.pth --faces FOLDER

`ASSETS` holds faceplugin_feature.onnx, faceres.onnx and emotion.onnx. `FOLDER` holds face crops; the mean FaceRes embedding of
some hundred of them is subtracted before cosines are taken. Only these 1024 means leave the photographs.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from diffdeid.evaluation.examiner import Examiner
from diffdeid.io.images import IMAGE_SUFFIXES, read_image
from diffdeid.training.prepare import centred_face

GRAPHS = {"faceplugin_feature.onnx": "faceplugin.onnx", "faceres.onnx": "faceres.onnx", "emotion.onnx": "emotion.onnx"}


def main(
    assets: Annotated[Path, typer.Option(help="Folder with the original graphs.")],
    efficientnet: Annotated[Path, typer.Option(help="State dict of EfficientNet-Lite0.")],
    faces: Annotated[Path, typer.Option(help="Folder of face crops.")],
    model: Annotated[Path, typer.Option(help="Finds their landmarks.")] = Path("weights/diffdeid"),
    out: Annotated[Path, typer.Option()] = Path("weights/evaluators"),
    num_faces: Annotated[int, typer.Option(help="Crops to use, evenly spread over the sorted folder.")] = 480,
) -> None:
    """Write everything but LICENSES.md."""
    out.mkdir(parents=True, exist_ok=True)
    for source, target in GRAPHS.items():
        shutil.copyfile(assets / source, out / target)
    state = torch.load(efficientnet, map_location="cpu", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if "_fc" not in name and "num_batches" not in name}
    save_file({name: tensor.half().contiguous() for name, tensor in kept.items()}, out / "efficientnet_lite0.safetensors")

    save_arrays({"mean": np.zeros(1024, np.float32)}, out / "faceres_mean.safetensors")
    examiner, vectors = Examiner(model, out), []
    paths = sorted(path for path in faces.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.parent.name != "labels")
    for index in np.linspace(0, len(paths) - 1, min(num_faces, len(paths))).round().astype(int):
        picture = np.asarray(read_image(paths[index]).image)
        (face,) = examiner.analyser(picture, [centred_face(picture)])
        if face.landmarks is not None:
            vectors.append(examiner.faceres(picture, face.landmarks)[-1])
    save_arrays({"mean": np.mean(vectors, axis=0, dtype=np.float32)}, out / "faceres_mean.safetensors")

    files = sorted(path for path in out.iterdir() if path.suffix in (".onnx", ".safetensors"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    typer.run(main)
