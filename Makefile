# make demo: render a bundled song with the bundled voice.    make test: run everything that needs no GPU.
# make gpu-test, make gpu-bench: on a machine with an NVIDIA GPU, its driver and Python (tests/gpu/prepare.sh); with
# TENSORRT=tensorrt-rtx or none for another runtime than TensorRT, with WHEELS=FOLDER where there is no network.
# make bench: measure the bundled voice's speed and memory here, and how near that comes to what this machine can do.

PYTHON ?= python3
TENSORRT ?= tensorrt
WHEELS ?=
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
GPU_ONLY := .venv/gpu-* .venv/lib/*/site-packages/system.pth
FOLDERS := $(shell find engine export kernels benchmarks -type d -not -name __pycache__ -not -path "engine/bundled/*")

.PHONY: demo test bench gpu-test gpu-bench clean

demo: .venv/render
	$(BIN)/notewave render engine/bundled/songs/band.mid --out demo.wav --plot demo.png

test: .venv/develop
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

bench: .venv/develop
	mkdir -p build
	$(BIN)/notewave bench --song engine/bundled/songs/band.mid --minutes 1 30 --json build/bench.json --plot build/bench.png
	$(BIN)/notewave bench roofline --json build/roofline.json --plot build/roofline.png

gpu-test: .venv/gpu-$(TENSORRT)
	NOTEWAVE_GPU_REQUIRED=1 $(BIN)/python -m pytest -m gpu -rs --junitxml build/gpu/tests.xml tests/gpu tests/test_kernels.py

gpu-bench: .venv/gpu-$(TENSORRT)
	tests/gpu/bench.sh

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The folders stand here because an editable install must be renewed when a file is added.
.venv/render: .venv/bin/python pyproject.toml $(FOLDERS)
	rm -f $(GPU_ONLY)
	$(PIP) install -e '.[cpu,plot]'
	touch $@

.venv/develop: .venv/bin/python pyproject.toml constraints.txt $(FOLDERS)
	rm -f $(GPU_ONLY)
	$(PIP) install -c constraints.txt -e '.[cpu,plot,rtx,export,train,evaluate,dev]'
	$(PIP) install --no-deps basic-pitch==0.4.0
	touch $@ .venv/render

.venv/gpu-$(TENSORRT): pyproject.toml tests/gpu/prepare.sh $(FOLDERS)
	PYTHON='$(PYTHON)' TENSORRT='$(TENSORRT)' WHEELS='$(WHEELS)' tests/gpu/prepare.sh
	touch '$@'

clean:
	rm -rf .venv build *.egg-info demo.wav demo.png
