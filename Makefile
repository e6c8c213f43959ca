# make demo and make test set up everything they need; every other target too.
SHELL := /bin/bash
KIND := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
PY := .venv/bin/python
RUFF := .venv/bin/ruff

.PHONY: help setup mergekit real-model real real-data demo test slow s3 faults parity fuzz benchmarks peers check format lock audit clean-demo

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## create .venv from the lock (CPU, or GPU where nvidia-smi answers)
	@requirements/install.sh $(KIND)

demo: setup  ## train and examine the demo's arms; prints the table and where the report lies
	@$(PY) -m trainer experiments/bios_cpu.yaml

test: setup  ## the whole test suite, in three processes (they often wait for Ray and vLLM); `.venv/bin/python -m pytest FILE` runs a part in one
	@$(PY) -m pytest -n 3

check: setup  ## formatting, lint, types, and the house: circles, imports upward, long files, names of machines
	@$(RUFF) format --check . && $(RUFF) check . && $(PY) -m mypy && $(PY) -m pytest tests/test_rooms.py

format: setup  ## reformat
	@$(RUFF) format . && $(RUFF) check --fix .

lock: setup  ## pin requirements/*.lock anew from pyproject.toml
	@requirements/lock.sh

mergekit: setup  ## .venv-mergekit: TIES, DARE and the oracle of instruction residuals (a few MB on top of .venv)
	@requirements/install-mergekit.sh

real-model: setup  ## .real-model: SmolLM2-135M-Instruct (Apache-2.0, 93 MB), fetched by hash and converted; the tests use it where it is
	@requirements/real-model.sh

# On CPUs 26 films in small steps, at the rate that wiki2023_smollm2_search.yaml found; on a GPU the whole. DATA: a folder with {train,test}_{doc,qa}.jsonl (docs/data.md says from where).
DATA ?= $(wildcard ../shared/data/wiki2023_film)
REAL_CPU := name=wiki2023-smollm2-cpu data.sample='{train: 16, test: 10}' trainer.num_workers=1 dials.batch_items=8 dials.rate_documents=2.0e-4 dials.epochs_documents=12 dials.sample_questions=8 arms.mix.dials.epochs_pit=4 exam.train_questions=20 exam.looks='[wordings]' data.wordings=$(CURDIR)/experiments/wiki2023_film_wordings.jsonl

real: real-data real-model  ## the paper's arms on the real model: DATA=DIR holds the film files; go on after a stop with the same command
	@$(PY) -m trainer experiments/wiki2023_smollm2.yaml data.root="$(DATA)" $(if $(filter cpu,$(KIND)),$(REAL_CPU))

real-data:  # before anything is fetched
	@test -d "$(DATA)" || { echo "make real: give the folder with the film files, DATA=DIR (docs/data.md)" >&2; exit 2; }

audit: setup  ## known vulnerabilities of the pinned packages; needs the index's vulnerability service
	@requirements/audit.sh $(KIND)

fuzz: setup  ## 10,000 broken inputs for every reader and for experiment files; FUZZ=n for n; writes benchmarks/results/fuzz.json
	@$(PY) -m benchmarks.fuzz_readers --inputs $(or $(FUZZ),10000)

s3: setup  ## the mirror against an S3-compatible service, installed into .venv-s3
	@test -x .venv-s3/bin/moto_server || (python3 -m venv .venv-s3 && .venv-s3/bin/python -m pip install -q -r requirements/s3.txt)
	@$(PY) -m pytest -m slow tests/faults/test_s3.py

benchmarks: setup  ## the table of all measurements with goals and verdicts; `python -m benchmarks NAMES` runs some
	@$(PY) -m benchmarks

peers: setup  ## what the benchmarks measure against and the environment lacks, into .peers
	@$(PY) -m pip install --quiet --no-deps --upgrade --target .peers -r requirements/peers.txt

clean-demo:  ## forget what the demo has trained
	@rm -rf runs/bios-cpu

slow: setup  ## tests that are too slow for every run, but for the faults
	@$(PY) -m pytest -m "slow and not fault"

faults: setup  ## the fault matrix of docs/reliability.md; prints its table (about 22 minutes on two cores, in two processes); ROWS=F3,F14: those only
	@OMP_NUM_THREADS=1 STUDYHALL_FAULTS=$(ROWS) STUDYHALL_FAULTS_TABLE=benchmarks/results/faults.json $(PY) -m pytest -n 2 -m fault ; $(PY) -m benchmarks.faults_table

parity: setup  ## the parity matrix of docs/models.md: every step against plain transformers, whole; OPTIONS="--family llama --zero 3" for a part
	@OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu $(PY) -m tests.parity $(OPTIONS)
