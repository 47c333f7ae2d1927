"""Assemble trained networks and fitted parts into a folder that `DiffDeIDPipeline.from_pretrained` loads, in fp16.

    python scripts/assemble_weights.py --pairs data/london [--networks runs/diffdeid_256/checkpoint-…] [--lds runs/lds]
        [--reconstructor runs/reconstructor/checkpoint-…]

Parts that are not given stay as they are in the folder.

`--pairs` is a store of prepared faces named `<person>_<anything>`. It calibrates the identity limit: the distance below which one
in a thousand pairs of different people falls, or dlib's own limit if that is stricter.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from diffdeid import DiffDeIDPipeline
from diffdeid.models.context_encoder import ContextEncoderModel
from diffdeid.models.face_analyser import FaceAnalyserModel
from diffdeid.models.face_parser import FaceParserModel
from diffdeid.models.face_recognition import FaceRecognitionModel
from diffdeid.models.face_reconstructor import FaceReconstructorModel
from diffdeid.models.hand_finder import HandFinderModel
from diffdeid.models.lds import LDSModel
from diffdeid.models.morphable_model import MorphableModel
from diffdeid.models.refiner import RefinerModel
from diffdeid.models.texture_encoder import TextureEncoderModel
from diffdeid.models.unet import DiffDeIDUNet2DModel
from diffdeid.training.data import FaceStore

FALSE_ACCEPT_RATE = 1e-3
DLIB_LIMIT = 0.45  # dlib takes two faces for one person below a Euclidean distance of 0.6, about this cosine distance


def calibrate(store: FaceStore) -> dict[str, float]:
    """Distances between and within people, `1 - cosine`."""
    people = np.array([name.split("_")[0] for name in store.names])
    identity = np.stack([store.open(name).get_tensor("identity") for name in store.names])
    distance = 1 - identity @ identity.T
    same = (people[:, None] == people) & ~np.eye(len(people), dtype=bool)
    between, within = distance[people[:, None] != people], distance[same]
    measured = float(np.quantile(between, FALSE_ACCEPT_RATE))
    limit = max(measured, DLIB_LIMIT)
    return {
        "identity_limit": round(limit, 3),
        "distance_at_false_accept_rate": round(measured, 3),
        "people": len(set(people)),
        "impostor_pairs": len(between) // 2,
        "genuine_pairs": len(within) // 2,
        "genuine_below_limit": round(float((within < limit).mean()), 4),
        "median_impostor_distance": round(float(np.median(between)), 3),
        "median_genuine_distance": round(float(np.median(within)), 3),
    }


def quicker(folder: Path, subfolder: str) -> DPMSolverMultistepScheduler:
    """The scheduler of a training run as a multistep solver in even steps of log SNR, which needs half of the steps.

    DPM-Solver++, Lu et al. 2022, arXiv 2211.01095. Settings that only DDIM has are left out.
    """
    trained = DDIMScheduler.load_config(folder, subfolder=subfolder)
    known, _, _ = DPMSolverMultistepScheduler.extract_init_dict(trained)
    return DPMSolverMultistepScheduler(**known | {"use_lu_lambdas": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, help="checkpoint with unet/ and texture_encoder/")
    parser.add_argument("--lds", type=Path, help="run folder with pipeline/ and context_encoder/")
    parser.add_argument("--reconstructor", type=Path, help="checkpoint of the reconstructor")
    parser.add_argument("--face-parser", type=Path, help="checkpoint of the face parser")
    parser.add_argument("--refiner", type=Path, help="checkpoint of the refiner")
    parser.add_argument("--pairs", type=Path, required=True, help="store of faces named <person>_<anything>")
    parser.add_argument("--out", type=Path, default=Path("weights/diffdeid"), help="holds the fitted parts already")
    args = parser.parse_args()

    calibration = calibrate(FaceStore(args.pairs))
    print(json.dumps(calibration))
    networks = args.networks or args.out
    sampler = (args.lds / "pipeline", "scheduler") if args.lds else (args.out, "lds_scheduler")
    reconstructor = args.reconstructor or (args.out / "reconstructor" if (args.out / "reconstructor").is_dir() else None)
    refiner = args.refiner or (args.out / "refiner" if (args.out / "refiner").is_dir() else None)
    pipeline = DiffDeIDPipeline(
        unet=DiffDeIDUNet2DModel.from_pretrained(networks, subfolder="unet").half(),
        texture_encoder=TextureEncoderModel.from_pretrained(networks, subfolder="texture_encoder").half(),
        scheduler=quicker(networks, "scheduler"),
        morphable_model=MorphableModel.from_pretrained(args.out, subfolder="morphable_model").half(),
        face_recognition=FaceRecognitionModel.from_pretrained(args.out, subfolder="face_recognition").half(),
        face_analyser=FaceAnalyserModel.from_pretrained(args.out, subfolder="face_analyser"),
        reconstructor=reconstructor and FaceReconstructorModel.from_pretrained(reconstructor).half(),
        lds=LDSModel.from_pretrained(sampler[0], subfolder="lds").half(),
        lds_scheduler=quicker(*sampler),
        face_parser=FaceParserModel.from_pretrained(args.face_parser or args.out / "face_parser").half(),
        hand_finder=HandFinderModel.from_pretrained(args.out, subfolder="hand_finder"),
        refiner=refiner and RefinerModel.from_pretrained(refiner).half(),
        context_encoder=ContextEncoderModel.from_pretrained(args.lds or args.out, subfolder="context_encoder").half(),
        identity_limit=calibration["identity_limit"],
    )
    for component in filter(None, pipeline.components.values()):
        component.register_to_config(_name_or_path="")  # paths of this machine must not be published
    pipeline.save_pretrained(args.out)
    files = sorted(path for path in args.out.rglob("*") if path.suffix in (".safetensors", ".onnx"))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(args.out).as_posix()}\n" for path in files]
    (args.out / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
