# make demo    tune and train the bundled model on the bundled data, with a summary at the end
# make test    every test; needs nothing but Python 3.11+ and make
# make test-quick  what needs no child process, in about a minute
# make test-oldest  every test on the oldest versions that pyproject.toml admits, in .venv-oldest
# make check   format, lint, types
# make chaos   runs that are killed, interrupted, filled up and damaged: what is lost, within 10 minutes
# make fuzz    22,000 damaged profiles, data files, run folders and token stores, into bench/results/fuzz-cpu.json
# make bench   what README quotes, measured anew into bench/results/, and what got better or worse (DATA=file EVAL=file
#              for real rows, ONLY=peers,demo for some of it)

PYTHON ?= python3
BIN := .venv/bin
DATA ?=
EVAL ?=
ONLY ?=
# rooms whose tests are quick without their child processes
QUICK := tests/autotune tests/profiles tests/dashboard tests/project $(addprefix tests/trainer/,config reading data artifacts supervisor run)
ROWS = $(if $(DATA),--data $(DATA))

.PHONY: demo test test-quick test-oldest check chaos fuzz bench bench-gpu clean

demo: .venv/main
	$(BIN)/python -m bench.demo

test: .venv/dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --durations 15

test-quick: .venv/dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quick $(QUICK)

test-oldest: .venv-oldest/test
	.venv-oldest/bin/python -m pytest --numprocesses 2 --dist worksteal --durations 15

fuzz: .venv/main
	$(BIN)/python -m bench.fuzz --result bench/results/fuzz-cpu.json

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

chaos: .venv/main
	$(BIN)/python -m bench.chaos --seconds 600 --result bench/results/chaos-cpu.json
	$(BIN)/python -m bench.chaos --docs

bench: .venv/peers
	$(BIN)/python -m bench.all $(ROWS) $(if $(EVAL),--eval-data $(EVAL)) $(if $(ONLY),--only $(ONLY))

bench-gpu: .venv/peers
	$(BIN)/python -m bench.demo --result bench/results/demo-gpu.json --device cuda
	$(BIN)/python -m bench.contract --result bench/results/contract-gpu.json --device cuda --model chatlm-0.2b --vram-limit 20GiB $(ROWS)
	$(BIN)/python -m bench.presets --result bench/results/presets-gpu.json --device cuda --model chatlm-0.2b --vram-limit 20GiB $(ROWS)
	$(BIN)/python -m bench.gpu --result bench/results/gpu.json $(ROWS)
	$(BIN)/python -m bench.accumulation --result bench/results/accumulation-gpu.json --device cuda
	$(BIN)/python -m bench.exactness --result bench/results/exactness-gpu.json --device cuda --processes 1
	$(BIN)/python -m bench.padding --result bench/results/padding-gpu.json --device cuda $(ROWS)
	$(BIN)/python -m bench.trainers --result bench/results/trainers-gpu.json --device cuda $(ROWS)

.venv/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "chatlm needs Python 3.11 or newer; this is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

.venv/main: .venv/pip pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/main
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@

.venv-oldest/test: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable . --group test
	@touch $@

.venv/peers: .venv/main
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group peers
	@touch $@

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info
