# Two commands: `make demo` and `make test`.  Both set up what is missing.

PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
LLAMA_VENV ?= .venv-llama
DOCS_VENV ?= .venv-docs
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-agents test-ui test-origins test-model test-faults test-all test-found coverage-tables soak test-vllm test-llama test-docs docs wheel lint setup model bench clean help

help:
	@echo "make demo   publish on one node, continue from it on another, bit for bit"
	@echo "make test   linters, types, and the tests (about 6 minutes on two cores)"
	@echo "make test-ui   the local page in a real Chromium"
	@echo "make test-origins  origins at a real S3 server and nginx"
	@echo "make test-model   with the default model: 256 steps, real documents, computing and fetching at once"
	@echo "make test-agents  what agent programs do: tools over pipes and HTTP, prefixes of conversations, documents"
	@echo "make test-faults  peers and publishers that lie, freeze, die, flood; disks that fail (about 20 minutes)"
	@echo "make test-all     these, test-vllm and test-llama, one after the other"
	@echo "make test-found   that the test of each module is where its name says, and runs half of it at least"
	@echo "make coverage-tables BEFORE=commit  branch coverage before and now, module by module (some hours)"
	@echo "make soak   20,000 fetches of one node through restarts, jumping clocks and lies (20 minutes)"
	@echo "make test-vllm    the connector in a real vLLM engine, in an environment of its own (about 16 minutes and set-up)"
	@echo "make test-llama   kvswap llama before a real llama.cpp, and two nodes, without torch (2 minutes and set-up)"
	@echo "make docs   the site of the docs, in site/; a broken link ends it"
	@echo "make test-docs    the first tutorial's commands as written, on two network namespaces (Linux, root)"
	@echo "make wheel  the wheel: built, installed in a new environment, and used from there"
	@echo "make bench  the figures of docs/benchmarks.md (about 90 minutes; bench_swarm and bench_grid need Linux and root)"
	@echo "make clean  remove the virtual environment and the demo's homes"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@PYTHON="$(PYTHON)" sh .ci/check-system
	@echo "setting up $(VENV) (once, a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -q $(TORCH)
	@$(PIP) install -q -e ".[dev]"
	@touch $@

model: setup
	@$(BIN)/kvswap model pull smollm2-135m -q >/dev/null

demo: setup
	@$(BIN)/python examples/demo.py

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python .ci/unasync --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports >/dev/null || $(BIN)/lint-imports
	@$(BIN)/python -m tests.found

test: setup lint model
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not faults and not model and not agents and not browser and not origins"

test-model: setup model
	$(BIN)/python -m pytest -m model

test-faults: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "faults and not model and not alone and not agents"
	$(BIN)/python -m pytest -m "faults and alone and not model"

test-agents: setup model
	$(BIN)/python -m pytest -m "agents and not model"

# Needs chromium (Debian: apt-get install chromium).
test-ui: setup
	@$(PIP) install -q -e ".[browser]"
	$(BIN)/python -m pytest -m browser

# Needs nginx (Debian: apt-get install nginx-light).
test-origins: setup
	@$(PIP) install -q -e ".[test-origins]"
	$(BIN)/python -m pytest -m origins

test-all: test test-agents test-model test-faults test-vllm test-llama test-ui test-origins

COVERING := .covering
test-found: setup model
	rm -rf $(COVERING)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not model and not alone and not browser and not origins" --covering $(COVERING)
	$(BIN)/python -m tests.found $(COVERING)

# BEFORE=commit: branch coverage of all tiers then and now, module by module; the page goes to REPORT
REPORT ?= coverage.md
coverage-tables: setup model
	$(BIN)/python -m tests.coverage_tables $(BEFORE) --report $(REPORT)

soak: setup
	$(BIN)/python -m tests.swarm.soak --report docs/results/soak.md

$(VLLM_VENV)/.ready: pyproject.toml .ci/setup-vllm
	@echo "setting up $(VLLM_VENV) (once, a few minutes)"
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh .ci/setup-vllm $(VLLM_VENV)

test-vllm: $(VLLM_VENV)/.ready
	$(VLLM_VENV)/bin/python -m pytest tests/vllm

$(LLAMA_VENV)/.ready: pyproject.toml .ci/setup-llama
	@echo "setting up $(LLAMA_VENV) (once, a minute)"
	@PYTHON="$(PYTHON)" sh .ci/setup-llama $(LLAMA_VENV)

test-llama: $(LLAMA_VENV)/.ready
	$(LLAMA_VENV)/bin/python -m pytest -n 2 --dist worksteal tests/llama

$(DOCS_VENV)/.ready: pyproject.toml
	@$(PYTHON) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip --disable-pip-version-check install -q "$$(sed -n 's/^docs = \["\(.*\)"\]/\1/p' pyproject.toml)"
	@touch $@

docs: $(DOCS_VENV)/.ready
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet
	@echo "the site is in site/index.html"

test-docs: setup model docs
	$(BIN)/python docs/tools/run_tutorial.py

wheel:
	@PYTHON="$(PYTHON)" .ci/check-wheel

bench: setup model
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(LLAMA_VENV) $(DOCS_VENV) $(COVERING) site .demo
