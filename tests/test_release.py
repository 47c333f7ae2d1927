"""The files that are published beside the weights; tests/hub builds and publishes."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["diffdeid", "diffdeid_lds", "diffdeid_video"])
def test_every_pipeline_has_a_card_and_names_its_class(name):
    from diffdeid.pipelines import pipeline_diffdeid, pipeline_lds, pipeline_video

    source = (ROOT / "pipelines" / name / "pipeline.py").read_text()
    line = next(line for line in source.splitlines() if line.startswith("from diffdeid"))
    cls = line.split("import ")[1].split()[0]
    assert any(hasattr(module, cls) for module in (pipeline_diffdeid, pipeline_lds, pipeline_video))
    card = (ROOT / "pipelines" / name / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n") and f'{cls}.from_pretrained("ORG/{name}")' in card


def test_a_folder_is_never_overwritten(tmp_path):
    build = runpy.run_path(str(ROOT / "scripts/release.py"))["build"]
    with pytest.raises(SystemExit, match="exists"):
        build("diffdeid_lds", ROOT / "weights/diffdeid", tmp_path)
