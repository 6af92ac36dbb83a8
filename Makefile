# All that a newcomer needs: `make demo` and `make test` install what they need once, and say what they do.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT := out/demo

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-reliability lint lock clean

help:
	@echo "make demo   refine weak boxes and points on real photographs to a table of masks and an HTML report in $(OUT)"
	@echo "make test   run all tests"
	@echo "make test-reliability   break runs in every known way (docs/reliability.md); 40 minutes"
	@echo "make lint   run ruff, mypy and the import rules"
	@echo "make lock   write requirements.lock again from pyproject.toml (newer versions where the bounds allow)"
	@echo "make clean  remove what the demo wrote"

setup: $(STAMP)

# The lock holds the exact version and hash of every package, the build backend included, so nothing else is downloaded.
$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11, or run: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@echo "==> Setting up $(VENV) (once; about 5 GB and a few minutes, most of it PyTorch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> Installing the locked dependencies"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet --no-deps --require-hashes -r requirements.lock
	@echo "==> Installing stable-sam itself"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	@echo "==> Copying photographs that come with scikit-image"
	@$(BIN)/stable-sam demo-images $(OUT)/images
	@echo "==> Refining the weak boxes and points of configs/demo/annotations.json"
	@$(BIN)/stable-sam refine --annotations configs/demo/annotations.json --images $(OUT)/images --output $(OUT)/table --config configs/demo.yaml
	@echo "==> Writing the report"
	@$(BIN)/stable-sam report --table $(OUT)/table --out $(OUT)/report.html --explain 3 --config configs/demo.yaml
	@echo "==> Done: open $(OUT)/report.html"

test: $(STAMP)
	@echo "==> Tests, two files at a time"
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-reliability: $(STAMP)
	@echo "==> Fault matrix (seeds, cases and more: ARGS=--help)"
	@$(BIN)/python -m tests.reliability --out out/reliability.json $(if $(S3_ENDPOINT),--s3-endpoint $(S3_ENDPOINT)) $(ARGS)
	@$(if $(ARGS),,echo "==> Heartbeats: dead runs are ended, living runs are not (five minutes)" && $(BIN)/python -m tests.reliability.heartbeats && echo "==> Nights that are cut short (five minutes)" && $(BIN)/python -m pytest -q tests/integration/interrupted_deployment.py)

lint: $(STAMP)
	@echo "==> ruff check";   $(BIN)/ruff check .
	@echo "==> ruff format";  $(BIN)/ruff format --check .
	@echo "==> mypy";         $(BIN)/mypy
	@echo "==> import rules"; $(BIN)/lint-imports

lock: $(STAMP)
	@echo "==> Resolving versions"
	@$(BIN)/uv pip compile pyproject.toml --extra demo --extra timm --group dev --universal --python-version 3.11 --upgrade --quiet \
		--generate-hashes --no-emit-index-url --no-header --no-annotate --output-file requirements.lock

clean:
	rm -rf $(OUT)
