# `make` lists the targets. Each first makes the environment if needed.
PYTHON  ?= python3
PROFILE ?= quick
TARGET  ?= all
CORES   ?= all
FLAGS   ?=
PORT    ?= 8000
UPSTREAM ?=

# An active conda environment named mimdet is used as it is; otherwise a virtual environment is made here.
ifeq ($(CONDA_DEFAULT_ENV),mimdet)
ENV := $(CONDA_PREFIX)
RUN :=
else
ENV := .venv
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH"
endif
export JUPYTER_PREFER_ENV_PATH = 1

# `make bundle PYTHON=3.12` gives the Python version of another machine; python3 is used here.
INTERPRETER := $(if $(filter 3.%,$(PYTHON)),python3,$(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help setup reproduce bench figures verify test docs docs-serve readme lab test-lab test-cluster lock bundle clean clean-runs

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | \
	    while IFS='|' read -r target text; do printf '  make %-12s %s\n' "$$target" "$$text"; done

setup: $(ENV)/.stamp ## make the environment (PYTHON=python3.12 to choose the interpreter)

$(ENV)/.stamp: requirements.lock pyproject.toml settings.ini
	@command -v "$(INTERPRETER)" >/dev/null || { \
	    echo "$(INTERPRETER) not found: install Python 3.11 or newer, or give its name: make PYTHON=... setup" >&2; \
	    exit 1; }
	@"$(INTERPRETER)" tools/setup.py "$(ENV)"

reproduce: setup ## make the runs, tables and figures of a study (PROFILE=quick, TARGET=table2, CORES=all, FLAGS=-n for a dry run)
	@$(RUN) python tools/reproduce.py $(PROFILE) --target $(TARGET) --cores $(CORES) $(FLAGS)

bench: PROFILE = bench
bench: setup ## compare our code with plain forms and the authors' code (UPSTREAM=folder of hustvl/MIMDet; PROFILE=bench_gpu on a GPU)
	@$(RUN) MIMDET_UPSTREAM="$(UPSTREAM)" python tools/reproduce.py $(PROFILE) --target $(TARGET) --cores $(CORES) $(FLAGS)

figures: setup ## draw the tables and figures of a study from existing records (PROFILE=quick)
	@$(RUN) python tools/figures.py $(PROFILE)

verify: setup ## check every table, figure and number in the text against its records
	@$(RUN) python tools/verify.py

test: setup ## run all tests: tests/ and the notebooks
	@$(RUN) python tools/test.py

docs: setup ## build the site in _docs from the executed notebooks (FLAGS=--fast to run none)
	@$(RUN) python tools/docs.py $(FLAGS)

docs-serve: docs ## serve the site at http://127.0.0.1:8000 (PORT=8000)
	@$(RUN) python -m http.server --bind 127.0.0.1 --directory _docs $(PORT)

readme: setup ## write README.md from nbs/index.ipynb
	@$(RUN) python tools/readme.py

lab: setup ## open the tutorials in JupyterLab, which saves notebooks without outputs
	@$(RUN) PYTHONPATH=tools IPYTHONDIR="$(CURDIR)/tools/ipython" jupyter lab --config=tools/lab.py --notebook-dir=. \
	    --LabApp.default_url=/lab/tree/nbs/tutorials/explore.ipynb $(FLAGS)

test-lab: setup ## test the tutorials in a real JupyterLab and Chromium (takes minutes; not part of make test)
	@$(RUN) python -m pytest -q tests/lab.py

test-cluster: setup ## run a study through a real SLURM, started here from packages (minutes; not part of make test)
	@$(RUN) python -m pytest -q tests/cluster.py

lock: setup ## update requirements.lock from pyproject.toml (FLAGS=--upgrade for the newest versions)
	@$(RUN) python -m uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url $(FLAGS) -q -o requirements.lock

bundle: setup ## pack the project and its packages, except PyTorch, for a machine without network (PYTHON=3.12: its version)
	@$(RUN) python tools/bundle.py $(filter 3.%,$(PYTHON))

clean: ## remove built files, but not the environment or runs
	rm -rf build _proc _docs nbs/_proc .pytest_cache *.egg-info
	find mimdet nbs tests tools -name __pycache__ -prune -exec rm -rf {} + \
	    -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

clean-runs: ## remove checkpoints, logs and executed notebooks of all runs (records and figures stay)
	rm -rf runs .snakemake
