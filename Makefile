# Everything you run here. `make demo` and `make test` each work alone on a fresh machine with Python 3.11, in any order.

PYTHON ?= python3.11
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
# Installed first, so that nothing later pulls another build. On a CPU-only machine point pip at PyTorch's CPU builds.
TORCH ?= torch==2.13.0
# Three workers: tests wait for servers and starts, which two leave a third of two cores idle. A file stays on one worker,
# so that its fixtures start once; the folders with the slow files come first. Python keeps what it compiles, also where
# the environment says otherwise: each of the programs that tests start reads it. Memory that a tensor gave back stays with
# its process: to get it from the system again costs small trainings 6 % of their time.
KEPT := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
PYTHON_M := PYTHONDONTWRITEBYTECODE= $(KEPT) $(PY) -m
PYTEST := pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25
# What decides a score; see `coverage`.
DECIDES := */formats/*,*/judge/rewards.py,*/judge/groups.py,*/engines/cache/engine.py,*/engines/cache/keys.py

# How long `make fuzz` looks for inputs that break a promise.
FUZZ_SECONDS ?= 300

# An environment for each real trainer, because they exclude each other; see recipes/trainers.
TRAINERS := .venv/trainers
# For trainers that want it; also one of pyenv that is not the chosen one.
PYTHON312 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python) python3.12)

.PHONY: help demo test test-fast test-trainers test-install fuzz lint figures dist nano clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1  /p' Makefile

demo: .venv/demo.ok ## trains the small policy with the embedded judge as its reward, and shows that it learned
	.venv/bin/flexjudge recipes run grpo_vlm --config nano --resume true

test: .venv/test.ok ## the whole suite: a real vLLM engine and server, real trainers; at least 92 % of the package covered
	$(PYTHON_M) slipcover --source flexjudge_reward --omit '*/media/*_worker.py' --json --out .venv/lines.json -m $(PYTEST)
	$(PY) tests/support/lines.py .venv/lines.json
	$(PY) -m coverage report --fail-under=92
	$(PY) -m coverage report --include='$(DECIDES)' --fail-under=100

test-fast: .venv/test.ok ## what a contributor runs: the units and the contracts, in about a minute
	$(PYTHON_M) $(PYTEST) --dist worksteal tests/contract tests/unit

test-trainers: .venv/test.ok $(foreach one,swift orlhf verl axolotl llama_factory verifiers slime,$(TRAINERS)/$(one).ok) ## the adapters in real trainers
	$(PY) benchmarks/trainers.py

test-install: ## the wheel and the README's first lines in empty environments, Python 3.11 to 3.13 and every extra (an hour)
	python3 benchmarks/install.py

fuzz: .venv/test.ok ## draws replies, candidates, rows, server answers and images for FUZZ_SECONDS (300) against the promises
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTHON_M) $(PYTEST) --dist load tests/fuzz

lint: .venv/test.ok ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

figures: ## the measured figures against their targets
	python3 benchmarks/figures.py

dist: .venv/venv.ok ## the wheel and the source distribution in dist/, as an index takes them
	$(PIP) build twine
	rm -rf dist
	$(PY) -m build
	$(PY) -m twine check --strict dist/*

nano: .venv/demo.ok ## retrains the embedded judge and its base from nothing (about an hour on two cores)
	.venv/bin/flexjudge recipes run judge_training/nano
	.venv/bin/flexjudge recipes run judge_training/sft --config nano --model_name_or_path build/nano/base

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
	$(PIP) -e '.[trl,cpu,vendors,video,molecules,diffusers,report,ray,dev]'
	$(PY) -m pip uninstall --quiet --yes torchaudio torchcodec
	$(PY) -m flexjudge_reward.engines.torchvision_mend
	touch $@

# The versions are the newest of 2026-11. ms-swift 4.6.0 imports msgspec, and verl 0.9.1 cachetools, uvicorn and fastapi, without declaring it.
$(TRAINERS)/swift.ok:
	$(PYTHON) -m venv $(TRAINERS)/swift
	$(TRAINERS)/swift/bin/pip install --quiet $(TORCH)
	$(TRAINERS)/swift/bin/pip install --quiet ms-swift==4.6.0 msgspec 'trl<1.0' peft==0.20.0
	$(TRAINERS)/swift/bin/pip install --quiet --no-deps qwen-vl-utils av torchvision==0.28.0
	PYTHONPATH=. $(TRAINERS)/swift/bin/python -m flexjudge_reward.engines.torchvision_mend
	touch $@

# Its wheel has a package `tests`, so it is not installed beside a suite of that name, but into a folder of its own.
$(TRAINERS)/orlhf.ok: .venv/venv.ok
	$(PIP) --no-deps --upgrade --target $(TRAINERS)/orlhf openrlhf==0.11.2
	touch $@

$(TRAINERS)/verl.ok:
	$(PYTHON) -m venv $(TRAINERS)/verl
	$(TRAINERS)/verl/bin/pip install --quiet $(TORCH)
	$(TRAINERS)/verl/bin/pip install --quiet 'ray[default,data]==2.60.0'
	$(TRAINERS)/verl/bin/pip install --quiet 'numpy>=2' transformers==5.10.4 tensordict==0.10.0 datasets==4.8.4 peft==0.20.0 \
	    accelerate hydra-core codetiming dill pylatexenc torchdata pybind11 tensorboard cachetools uvicorn fastapi 'TransferQueue>=0.1.10'
	$(TRAINERS)/verl/bin/pip install --quiet --no-deps verl==0.9.1
	$(TRAINERS)/verl/bin/pip install --quiet --no-deps qwen-vl-utils av torchvision==0.28.0
	PYTHONPATH=. $(TRAINERS)/verl/bin/python -m flexjudge_reward.engines.torchvision_mend
	touch $@

# Both are read by the main environment, so they bring only what differs from it. axolotl asks for Python 3.12; what is
# run of it does without.
$(TRAINERS)/axolotl.ok: .venv/venv.ok
	$(PIP) --no-deps --upgrade --ignore-requires-python --target $(TRAINERS)/axolotl axolotl==0.21.0 trl==1.14.1 addict
	touch $@

$(TRAINERS)/llama_factory.ok: .venv/venv.ok
	$(PIP) --no-deps --upgrade --target $(TRAINERS)/llama_factory llamafactory==0.9.5 trl==0.9.6 transformers==4.56.2 \
	    tokenizers==0.22.2 huggingface-hub==0.36.2 peft==0.18.1 accelerate==1.11.0 datasets==4.0.0 omegaconf \
	    antlr4-python3-runtime==4.9.3 fire termcolor sse-starlette tyro docstring_parser typeguard shtab
	touch $@

$(TRAINERS)/verifiers.ok:
	$(PYTHON) -m venv $(TRAINERS)/verifiers
	$(TRAINERS)/verifiers/bin/pip install --quiet verifiers==0.4.0 pillow tqdm
	touch $@

# On no package index: its repository, or a folder with it. Its rewards import pylatexenc, which the main environment has not.
SLIME ?= git+https://github.com/THUDM/slime@624b824a898ab0ec1fcb4d373004c7f3852bf515
$(TRAINERS)/slime.ok: .venv/venv.ok
	$(PIP) --no-deps --upgrade --target $(TRAINERS)/slime pylatexenc==2.11 $(SLIME)
	touch $@

# Needs Python 3.12; without this environment, its test is skipped.
$(TRAINERS)/nemo_gym.ok:
	$(PYTHON312) -m venv $(TRAINERS)/nemo_gym
	$(TRAINERS)/nemo_gym/bin/pip install --quiet --no-deps nemo-gym==0.4.0
	$(TRAINERS)/nemo_gym/bin/pip install --quiet fastapi itsdangerous uvicorn uvloop 'openai<=2.7.2' hydra-core omegaconf orjson psutil \
	    devtools yappi gprof2dot pydot ray==2.60.0 requests httpx pandas rich wandb aiohttp pillow tqdm
	touch $@
