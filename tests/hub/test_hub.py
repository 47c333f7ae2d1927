"""Loading from and publishing on the Hub, over HTTP, from separate processes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from diffdeid import __version__
from tests.conftest import ROOT
from tests.hub.server import read_folder
from tests.tiny import tiny_lds_pipeline

LDS = "lds/diffusion_pytorch_model.safetensors"

LOAD = """
import json
from diffdeid import LDSPipeline

def attempt(name, **options):
    try:
        LDSPipeline.from_pretrained(name, **options)
        return "loaded"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def test_the_shipped_weights_work_from_the_hub_and_without_it_afterwards(hub, user, pipeline, tmp_path):
    hub.add("org/diffdeid", ROOT / "weights/diffdeid")
    code = f"""
import numpy as np, torch
from PIL import Image
from diffdeid import DiffDeIDPipeline
torch.set_num_threads(1)
for _ in range(2):
    pipe = DiffDeIDPipeline.from_pretrained("org/diffdeid")
photo = Image.open("tests/assets/astronaut.png").convert("RGB")
output = pipe(photo, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
np.save({str(tmp_path / "made.npy")!r}, output.images[0])
print(output.faces[0][0].method)
"""
    assert user(code) == "diffusion"
    fetched = hub.downloads()
    assert "unet/diffusion_pytorch_model.safetensors" in fetched and "face_analyser/centerface.onnx" in fetched
    assert not [path for path in fetched if path.endswith(".md")] and len(fetched) == len(set(fetched))

    photo = Image.open(ROOT / "tests/assets/astronaut.png").convert("RGB")
    expected = pipeline(photo, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images[0]
    assert np.abs(np.load(tmp_path / "made.npy").astype(int) - expected).max() <= 1  # another process, other addresses

    hub.repositories.clear()
    assert user(code, offline=True) == "diffusion" and hub.requests == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, user, lds_folder):
    repository = hub.add("org/lds", lds_folder)
    first = repository.branches["main"]
    repository.tags["v1.0.0"] = first
    tensors = load(repository.commits[first][LDS])
    repository.commit(repository.commits[first] | {LDS: save(tensors | {"std": tensors["std"] * 3})})
    code = f"""
from diffdeid import LDSPipeline
for revision in (None, "main", "v1.0.0", {first!r}):
    print(LDSPipeline.from_pretrained("org/lds", revision=revision).lds.std[0].item())
"""
    assert user(code).split() == ["3.0", "3.0", "1.0", "1.0"]


def test_only_data_of_the_variant_is_fetched(hub, user, lds_folder, tmp_path):
    tiny_lds_pipeline().save_pretrained(tmp_path / "fp16", variant="fp16")
    others = {f"lds/{name}": b"x" for name in ("lds.py", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.x.safetensors")}
    hub.add("org/all", lds_folder, **others)
    hub.add("org/one", tmp_path / "fp16", **others)
    code = "from diffdeid import LDSPipeline; LDSPipeline.from_pretrained('org/all')"
    user(code + "; LDSPipeline.from_pretrained('org/one', variant='fp16')")
    data = ["lds/config.json", "model_index.json", "scheduler/scheduler_config.json"]
    weights = [LDS, "lds/diffusion_pytorch_model.x.safetensors", "lds/diffusion_pytorch_model.fp16.safetensors"]
    assert sorted(hub.downloads()) == sorted(2 * data + weights)


def test_what_is_missing_or_forbidden_is_said(hub, user, lds_folder):
    hub.add("org/lds", lds_folder)
    hub.add("org/gated", lds_folder, gated=True)
    hub.add("org/empty", lds_folder, **dict.fromkeys([LDS], None))
    called = """
from diffdeid.cli import app
from typer.testing import CliRunner

for name in ("nothing", "gated", "empty"):
    print(json.dumps(attempt(f"org/{name}")))
for options in ({"revision": "v9"}, {"local_files_only": True}):
    print(json.dumps(attempt("org/lds", **options)))
print(json.dumps(attempt("org/gated", token=TOKEN)))
called = CliRunner().invoke(app, ["anonymize", "tests/assets/astronaut.png", "--model", "org/nothing"])
print(json.dumps(f"{called.exit_code} {called.output}"))
"""
    lines = user(LOAD + called.replace("TOKEN", repr(hub.token))).splitlines()
    missing, gated, empty, revision, local, allowed, command = (json.loads(line) for line in lines)
    assert missing.startswith("RepositoryNotFoundError") and "org/nothing" in missing
    assert gated.startswith("GatedRepoError") and "restricted" in gated
    assert revision.startswith("RevisionNotFoundError") and "v9" in revision
    assert empty.startswith("OSError") and "no file named diffusion_pytorch_model" in empty
    assert local.startswith("LocalEntryNotFoundError")
    assert allowed == "loaded"
    assert command.startswith("1 error: ") and "org/nothing" in command


def test_malicious_repositories_are_refused(hub, user, lds_folder, tmp_path):
    trap = tmp_path / "sprung"
    pickled = f"cbuiltins\nopen\n(V{trap}\nVw\ntR.".encode()
    code = f"open({str(trap)!r}, 'w')".encode()
    index = json.loads((lds_folder / "model_index.json").read_text())
    tensors = load((lds_folder / LDS).read_bytes())
    name = next(name for name in tensors if name.startswith("blocks."))

    def altered(**changes) -> bytes:
        return json.dumps(index | changes).encode()

    attacks = {
        "pickle": {LDS: None, LDS.replace("safetensors", "bin"): pickled},
        "disguise": {LDS: pickled},
        "pipeline": {"model_index.json": altered(_class_name=["pipeline", "Evil"]), "pipeline.py": code},
        "component": {"model_index.json": altered(lds=["lds", "Evil"]), "lds/lds.py": code},
        "module": {"model_index.json": altered(lds=["subprocess", "Popen"])},
        "class": {"model_index.json": altered(lds=["diffdeid.models.unet", "DiffDeIDUNet2DModel"])},
        "symlink": {LDS: b"../../../../../../etc/passwd"},
        "link": {"lds/config.json": b"../../../../../../etc/passwd"},
        "missing": {LDS: save({key: value for key, value in tensors.items() if key != name})},
        "added": {LDS: save(tensors | {"blocks.9.extra": torch.zeros(1)})},
        "reshaped": {LDS: save(tensors | {name: torch.zeros(3)})},
    }
    for attack, files in attacks.items():
        hub.add(f"evil/{attack}", lds_folder, **files)
    hub.add("evil/escape", lds_folder, **{"../../../../sprung.json": b"{}", "lds/../../../../../sprung.json": b"{}"})
    code = LOAD + f"print(json.dumps({{name: attempt('evil/' + name) for name in {[*attacks, 'escape']!r}}}))"
    results = json.loads(user(code).splitlines()[-1])
    assert not trap.exists() and not list(tmp_path.glob("sprung*"))
    assert not [path for path in hub.downloads() if path.endswith((".py", ".bin"))]
    assert [attack for attack, result in results.items() if result == "loaded"] == ["pipeline"]  # its code stayed where it was
    assert "blocks." in results["missing"] and "blocks.9.extra" in results["added"]


def test_a_pipeline_is_published_by_push_to_hub(hub, user):
    code = """
import torch
from tests.tiny import tiny_lds_pipeline
from diffdeid import LDSPipeline
pipe = tiny_lds_pipeline()
pipe.push_to_hub("org/mine")
again = LDSPipeline.from_pretrained("org/mine")
for one in (pipe, again):
    print(one(generator=torch.Generator().manual_seed(0), num_inference_steps=2).identity.sum().item())
try:
    pipe.push_to_hub("org/mine", token="somebody else's")
except Exception as error:
    print(error.response.status_code)
"""
    one, two, refused = user(code, token=hub.token).split()[-3:]
    assert float(one) == pytest.approx(float(two), rel=1e-4) and refused == "401"


def test_a_release_is_built_checked_and_published_once(hub, user, tmp_path):
    hub.add("org/lds", tmp_path / "nothing", **{"old.txt": b"", "README.md": b"old"})
    built, shipped = tmp_path / "lds", ROOT / "weights/diffdeid/lds"
    release = "scripts/release.py", "diffdeid_lds"
    user(*release, str(built), "--push", "org/lds", token=hub.token)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["lds"]

    files = hub.repositories["org/lds"].commits[hub.repositories["org/lds"].tags[f"v{__version__}"]]
    assert files == read_folder(built) and set(files) == {
        "LICENSES.md", "README.md", "pipeline.py", "model_index.json", "scheduler/scheduler_config.json", "lds/config.json", LDS,
    }  # fmt: skip
    assert f'LDSPipeline.from_pretrained("org/lds", revision="v{__version__}")' in files["README.md"].decode()
    assert json.loads(files["model_index.json"])["_class_name"] == "LDSPipeline"
    assert len(files[LDS]) == pytest.approx((shipped / "diffusion_pytorch_model.safetensors").stat().st_size, rel=0.01)

    assert "has v" in user(*release, str(tmp_path / "again"), "--push", "org/lds", token=hub.token, fails=True)
    assert not (tmp_path / "again").exists() and len(hub.repositories["org/lds"].commits) == 2
