"""Build the folders to publish: one for the Hub, which is checked by loading it again, or that of the Space.

    python scripts/release.py diffdeid out/diffdeid            # also diffdeid_lds, diffdeid_video
    python scripts/release.py diffdeid out/diffdeid --push ORG/diffdeid
    python scripts/release.py space out/space                  # or --push ORG/diffdeid

The Space has the app, the package, the weights that they need, and the examples. Any other folder has the weights (safetensors),
configs, licences, the card and the one-line `pipeline.py` of `pipelines/<name>/`. It is loaded again in a fresh process, by our
class and by diffusers' generic one, and must give the same results as the weights here, to the last bit. Only then is it uploaded
and tagged `v<version>`.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi
from PIL import Image

from diffdeid import DiffDeIDPipeline, DiffDeIDVideoPipeline, LDSPipeline, __version__

ROOT = Path(__file__).parents[1]
PHOTO = ROOT / "tests/assets/astronaut.png"
TAG = f"v{__version__}"
SPACE_CARD = """
# DiffDeID

Gives every face in a photo or video to somebody who does not exist. Expression, pose, gaze, hair, light and background stay.

The code is Apache-2.0. The weights are for research and non-commercial use. Licences: `LICENSE`, `weights/diffdeid/LICENSES.md`,
`examples/LICENSES.md`.
"""
CLASSES = {"diffdeid": DiffDeIDPipeline, "diffdeid_lds": LDSPipeline, "diffdeid_video": DiffDeIDVideoPipeline}


def load(name: str, folder: Path) -> DiffusionPipeline:
    """Load a pipeline from its own folder, or from the weights here, which have the parts of all pipelines."""
    if name == "diffdeid_lds" and (folder / "unet").is_dir():
        return DiffDeIDPipeline.from_pretrained(folder, use_safetensors=True).identity_sampler
    return CLASSES[name].from_pretrained(folder, use_safetensors=True)


def load_by_diffusers(folder: Path) -> DiffusionPipeline:
    """Load a pipeline by diffusers' own class, which runs the folder's `pipeline.py`."""
    return DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True, use_safetensors=True)


def golden(pipe: DiffusionPipeline) -> str:
    """A hash of a pipeline's result for the demo photo (the LDS needs no photo), from one seed."""
    pipe.set_progress_bar_config(disable=True)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    photo = np.asarray(Image.open(PHOTO).convert("RGB"))
    match pipe:
        case LDSPipeline():
            made = pipe(num_identities=4, generator=generator).identity.numpy()
        case DiffDeIDVideoPipeline():
            made = next(pipe.stream([photo], generator=generator, num_inference_steps=2))
        case _:
            made = pipe(photo, generator=generator, num_inference_steps=2, output_type="np").images[0]
    return hashlib.sha256(made.tobytes()).hexdigest()


def build(name: str, model: Path, out: Path, repository: str | None = None):
    """Write the folder, which appears complete and checked or not at all; its card names the `repository`, if given."""
    if out.exists():
        raise SystemExit(f"`{out}` exists. Choose a new folder.")
    pipe = load(name, model)
    expected = golden(pipe)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.half()  # as the weights here are stored, so nothing is lost
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary, out.name)
        pipe.save_pretrained(folder, safe_serialization=True)
        shutil.copy(ROOT / "pipelines" / name / "pipeline.py", folder)
        card = (ROOT / "pipelines" / name / "README.md").read_text("utf-8")
        if repository:
            card = card.replace(f'"ORG/{name}"', f'"{repository}", revision="{TAG}"')
        (folder / "README.md").write_text(card, "utf-8")
        for licences in (model / "LICENSES.md", *model.glob("*/LICENSES.md")):
            if (target := folder / licences.relative_to(model)).parent.is_dir():
                shutil.copy(licences, target)
        for how in ("class", "diffusers"):  # each in a fresh process, as a user's
            command = [sys.executable, __file__, name, str(folder), "--golden", how]
            made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]
            if made != expected:
                raise SystemExit(f"Loaded by its {how}, the folder of `{name}` does not give what the weights of `{model}` give.")
        folder.rename(out)
    print(f"{out}: {sum(file.stat().st_size for file in out.rglob('*')) / 2**20:.0f} MiB, loaded again, golden {expected[:16]}")


def build_space(model: Path, out: Path):
    """Write the folder of the Space, which appears complete or not at all: `python app.py` runs there."""
    if out.exists():
        raise SystemExit(f"`{out}` exists. Choose a new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder, weights = Path(temporary, out.name), Path(temporary, out.name, "weights", "diffdeid")
        shutil.copytree(ROOT / "diffdeid", folder / "diffdeid", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "examples", folder / "examples")
        for name in ("app.py", "requirements.txt", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        header = (ROOT / "README.md").read_text("utf-8").split("---\n")[1]
        (folder / "README.md").write_text(f"---\n{header}---\n{SPACE_CARD}", "utf-8")
        shutil.copytree(model, weights, ignore=shutil.ignore_patterns("reconstructor", "SHA256SUMS"))
        index = json.loads((weights / "model_index.json").read_text("utf-8"))
        index["reconstructor"] = [None, None]  # a third of the size, and the app fits heads instead
        (weights / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        folder.rename(out)
    print(f"{out}: {sum(file.stat().st_size for file in out.rglob('*')) / 2**20:.0f} MiB")


def push_space(out: Path, repository: str):
    """Upload the folder of the Space, replacing what was there."""
    HfApi().create_repo(repository, repo_type="space", space_sdk="gradio", exist_ok=True)
    message = f"DiffDeID {__version__}"
    HfApi().upload_folder(repo_id=repository, repo_type="space", folder_path=out, commit_message=message, delete_patterns="*")
    print(f"{repository} is {TAG}")


def open_repository(repository: str):
    """Create the repository if it does not exist, and stop if it has a release of our version already."""
    HfApi().create_repo(repository, exist_ok=True)
    if any(released.name == TAG for released in HfApi().list_repo_refs(repository).tags):
        raise SystemExit(f"`{repository}` has {TAG} already. Raise `__version__`.")


def push(out: Path, repository: str):
    """Upload the folder, and tag it with our version."""
    message = f"DiffDeID {__version__}"
    HfApi().upload_folder(repo_id=repository, folder_path=out, commit_message=message, delete_patterns="*")
    HfApi().create_tag(repository, tag=TAG)
    print(f"{repository} is {TAG}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*CLASSES, "space"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "diffdeid")
    parser.add_argument("--push", metavar="ORG/NAME")
    parser.add_argument("--golden", choices=("class", "diffusers"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.golden:
        by_class = arguments.golden == "class"
        print(golden(load(arguments.name, arguments.out) if by_class else load_by_diffusers(arguments.out)))
    elif arguments.name == "space":
        build_space(arguments.model, arguments.out)
        if arguments.push:
            push_space(arguments.out, arguments.push)
    else:
        if arguments.push:
            open_repository(arguments.push)
        build(arguments.name, arguments.model, arguments.out, arguments.push)
        if arguments.push:
            push(arguments.out, arguments.push)
