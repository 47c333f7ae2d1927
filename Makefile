# `make demo` and `make test` need nothing but Python 3.11 or newer; both build .venv on their first run.
PYTHON ?= python3
PHOTO ?= tests/assets/astronaut.png
BIN := .venv/bin

.PHONY: demo docs report test test-browser

demo: .venv/.installed
	$(BIN)/diffdeid anonymize "$(PHOTO)" -o demo/after.png --seed 0 --existing replace
	$(BIN)/python scripts/before_after.py "$(PHOTO)" demo/after.png demo/before_after.png

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile  # each of one thread

# Screenshots go to demo/browser/.
test-browser: .venv/.installed
	command -v chromium chromedriver || apt-get install -y chromium chromium-driver
	$(BIN)/python -m pytest tests/app/test_browser.py tests/app/test_review_page.py

# The site loads nothing from elsewhere; only its search needs a server, as `mkdocs serve`.
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# DATA holds london/, wild/, val/ and video/val/ (scripts/make_report.py). Without it only the pages are written again.
report: .venv/.installed
	$(BIN)/python scripts/make_report.py $(if $(DATA),"$(DATA)")

# torch first and alone: the builds to choose from differ between machines, and the rest must take the one chosen.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "torch>=2.8,<2.14"
	$(BIN)/python -m pip install -e ".[test]"
	touch $@
