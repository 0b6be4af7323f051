# Two commands for users: `make demo` and `make test`. Both set up .venv by themselves; a second call is quick.
# PYTHON and TORCH may be chosen: `make test PYTHON=python3.12 TORCH=torch==2.13.0`.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
READY  := .venv/.ready

.PHONY: demo test check prove docs clean

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

docs: $(READY)
	$(BIN)/python -m chimerakit.cli.reference > docs/cli.md

# Torch comes first and pinned, so that nothing pulls another build of it.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[eval,dev]"
	@touch $@

clean:
	rm -rf .venv demo-out
