# make demo: render a bundled song with the bundled voice.    make test: run everything that needs no GPU.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
FOLDERS := engine export export/training kernels benchmarks

.PHONY: demo test clean

demo: .venv/render
	$(BIN)/notewave render engine/songs/demo.mid --out demo.wav --plot demo.png

test: .venv/develop
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The folders stand here because an editable install must be renewed when a file is added.
.venv/render: .venv/bin/python pyproject.toml $(FOLDERS)
	$(PIP) install -e '.[cpu,plot]'
	touch $@

.venv/develop: .venv/bin/python pyproject.toml constraints.txt $(FOLDERS)
	$(PIP) install -c constraints.txt -e '.[cpu,plot,rtx,export,train,evaluate,dev]'
	$(PIP) install --no-deps basic-pitch==0.4.0
	touch $@ .venv/render

clean:
	rm -rf .venv build *.egg-info demo.wav demo.png
