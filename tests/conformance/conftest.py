"""diffusers' own test suite, which is in no package: `DIFFUSERS_TESTS_DIR` names the `tests` folder of a checkout.

    DIFFUSERS_TESTS_DIR=…/diffusers/tests python -m pytest tests/conformance

Its imports are relative, so it can have another name beside our own `tests`. Without the variable all of this is skipped. With
the pipelines' part as of commit 02aaed7, diffusers 0.42.1 and no GPU, 72 tests passed and 83 were skipped, most for lack of one.
"""

import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if folder := os.environ.get("DIFFUSERS_TESTS_DIR"):
    spec = spec_from_file_location("diffusers_tests", Path(folder, "__init__.py"), submodule_search_locations=[folder])
    sys.modules["diffusers_tests"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["diffusers_tests"])


def pytest_configure(config):
    if folder:
        for mark in set(re.findall(r"pytest\.mark\.(\w+)", Path(folder, "testing_utils.py").read_text())):
            config.addinivalue_line("markers", f"{mark}: of diffusers' suite")
