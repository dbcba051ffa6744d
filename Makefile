# `make demo`, `make demo-segmentation`, `make demo-change` and `make test` do everything on a machine that has
# Python >= 3.10 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: demo demo-segmentation demo-change demo-volumes demo-registration test lint types slow floors docs clean

demo: $(VENV)/.train
	$(BIN)/python tools/demo.py

demo-segmentation: $(VENV)/.train,medical
	$(BIN)/python tools/demo_segmentation.py

demo-registration: $(VENV)/.train,medical
	$(BIN)/python tools/demo_registration.py

demo-change: $(VENV)/.train,geo
	$(BIN)/python tools/demo_change.py

demo-volumes: $(VENV)/.train,medical
	$(BIN)/python tools/demo_volumes.py

# two processes of one thread each, so that they do not compete for cores
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 15

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/basedpyright

# the lowest and the newest versions that pyproject.toml allows, each in its own environment
floors:
	tools/ci_floors.sh $(PYTHON) floor floor
	tools/ci_floors.sh $(PYTHON) newest newest

# what `make test` leaves out because it takes long
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# the site, into build/site, with new outputs of the notebooks; a warning is an error
docs: $(VENV)/.docs
	rm -rf build/notebooks
	$(BIN)/mkdocs build --strict --config-file .mkdocs.yml

$(VENV)/.docs $(VENV)/.train $(VENV)/.train,medical $(VENV)/.train,geo $(VENV)/.dev: $(VENV)/.%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo 'vimamba needs Python >= 3.10; name one: make PYTHON=python3.12' >&2; exit 2; }
	@echo 'Installing vimamba and its dependencies into $(VENV): a few minutes, once.'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) demo runs build dist
