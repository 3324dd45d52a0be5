# make demo: render a bundled song with the bundled voice.    make test: run everything that needs no GPU.
# make gpu-test, make gpu-bench: on a machine with an NVIDIA GPU, its driver and Python (tests/gpu/prepare.sh); with
# TENSORRT=tensorrt-rtx or none for another runtime than TensorRT, with WHEELS=FOLDER where there is no network.
# make bench: measure the bundled voice's speed and memory here, and how near that comes to what this machine can do.
# make soak: an hour of random work on the bundled voice, or MINUTES=5.    make fuzz: random inputs, MINUTES=5.
# make coverage: the tests, and which lines of the engine they did not run: here and in build/coverage/index.html.
# make wheel: dist/*.whl, the same bytes from the same commit.    make wheel-check: builds it twice and compares.
# make lock: renew locks/*.txt, the releases and hashes that demo and test install on Linux x86-64, Python 3.11 to 3.13.
# make audit: are there known holes in those releases?    make sbom: what rendering on a CPU runs: build/sbom.json.

PYTHON ?= python3
TENSORRT ?= tensorrt
WHEELS ?=
MINUTES ?= 60
SEED ?= 0
BIN := .venv/bin
TOOLS := .venv/tools/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
GPU_ONLY := .venv/gpu-* .venv/lib/*/site-packages/system.pth
FOLDERS := $(shell find engine export kernels benchmarks -type d -not -name __pycache__ -not -path "engine/bundled/*")
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' locks/torch-cpu.txt)
BASIC_PITCH := basic-pitch==0.4.0
EXTRAS := cpu plot serve corpus ray rtx export train evaluate dev

# The locks name everything that is to be installed; elsewhere than where they hold, pip finds releases by itself.
LOCKED := $(shell $(PYTHON) -c 'import platform as p, sys; print("yes" * (p.system() == "Linux" and \
	p.machine() == "x86_64" and (3, 11) <= sys.version_info[:2] <= (3, 13)))')
HASHED := install --require-hashes --no-deps --no-build-isolation
# PYTHONWARNINGS: setuptools takes folders of data for packages that were forgotten.
OURS := PYTHONWARNINGS=ignore $(PIP) install --no-deps --no-build-isolation -e .
LOCK := $(TOOLS)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock'

.PHONY: demo test bench soak fuzz coverage wheel wheel-check lock audit sbom gpu-test gpu-bench clean

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

soak: .venv/develop
	$(BIN)/python tests/soak.py --minutes $(MINUTES) --seed $(SEED)

fuzz: .venv/develop
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES)

coverage: .venv/develop
	rm -rf build/coverage*
	mkdir -p build
	-$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report

wheel: .venv/develop
	locks/wheel.sh $(BIN)/python . dist

# Two clones of the last commit, in folders of unlike names, of unlike times and permissions.
wheel-check: .venv/develop
	rm -rf build/wheels
	(umask 002 && git clone --quiet . build/wheels/one)
	(umask 077 && sleep 2 && git clone --quiet . build/wheels/another)
	for clone in one another; do locks/wheel.sh $(BIN)/python build/wheels/$$clone build/wheels/of-$$clone || exit 1; done
	sha256sum build/wheels/of-*/*.whl
	cmp build/wheels/of-*/*.whl

lock: .venv/tools/made
	printf '%s\n' pip setuptools | $(LOCK) - -o locks/build.txt >/dev/null
	printf '%s\n' cyclonedx-bom pip-audit uv | $(LOCK) - -c locks/build.txt -o locks/tools.txt >/dev/null
	printf '%s\n' $(TORCH) | $(LOCK) - -c locks/build.txt -o locks/torch-cuda.txt >/dev/null
	printf '%s\n' $(BASIC_PITCH) | $(LOCK) --config-file locks/uv.toml pyproject.toml - $(EXTRAS:%=--extra %) \
		-c locks/torch-cuda.txt --no-emit-package torch -o locks/develop.txt >/dev/null
	$(LOCK) pyproject.toml --extra cpu --extra plot -c locks/develop.txt -o locks/render.txt >/dev/null
	$(LOCK) pyproject.toml --extra cpu -c locks/develop.txt -o locks/cpu.txt >/dev/null

# The releases of cpu.txt and render.txt are those of develop.txt, that of torch-cpu.txt is in torch-cuda.txt.
audit: .venv/tools/made
	for lock in build develop torch-cuda tools; do \
		$(TOOLS)/pip-audit --strict --disable-pip --require-hashes -r locks/$$lock.txt || exit 1; done

sbom: .venv/tools/made .venv/develop
	rm -rf build/sbom build/sbom.json
	$(PYTHON) -m venv --without-pip build/sbom
	$(PIP) --python build/sbom $(HASHED) -r locks/cpu.txt
	locks/wheel.sh $(BIN)/python . build/sbom
	$(PIP) --python build/sbom install --no-deps build/sbom/*.whl
	$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible --validate \
		--output-file build/sbom.json build/sbom

gpu-test: .venv/gpu-$(TENSORRT)
	NOTEWAVE_GPU_REQUIRED=1 $(BIN)/python -m pytest -m gpu -rs --junitxml build/gpu/tests.xml tests/gpu tests/test_kernels.py

gpu-bench: .venv/gpu-$(TENSORRT)
	tests/gpu/bench.sh

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The folders stand below because an editable install must be renewed when a file is added.
ifeq ($(LOCKED),yes)
.venv/build: .venv/bin/python locks/build.txt
	$(PIP) install --require-hashes --no-deps -r locks/build.txt
	touch $@

.venv/render: .venv/build pyproject.toml locks/render.txt $(FOLDERS)
	rm -f $(GPU_ONLY)
	$(PIP) $(HASHED) -r locks/render.txt
	$(OURS)
	touch $@

.venv/develop: .venv/build pyproject.toml locks/develop.txt locks/torch-cpu.txt locks/torch-cuda.txt $(FOLDERS)
	rm -f $(GPU_ONLY)
	$(PIP) $(HASHED) -r locks/torch-cpu.txt 2>/dev/null || $(PIP) $(HASHED) -r locks/torch-cuda.txt
	$(PIP) $(HASHED) -r locks/develop.txt
	$(OURS)
	touch $@ .venv/render
else
.venv/render: .venv/bin/python pyproject.toml $(FOLDERS)
	rm -f $(GPU_ONLY)
	$(PIP) install -e '.[cpu,plot]'
	touch $@

.venv/develop: .venv/bin/python pyproject.toml $(FOLDERS)
	rm -f $(GPU_ONLY)
	$(PIP) install 'setuptools>=77' $(TORCH) -e '.[cpu,plot,serve,corpus,ray,rtx,export,train,evaluate,dev]'
	$(PIP) install --no-deps $(BASIC_PITCH)
	touch $@ .venv/render
endif

.venv/tools/made: locks/tools.txt
	$(PYTHON) -m venv .venv/tools
	$(TOOLS)/pip --disable-pip-version-check --quiet install --require-hashes --no-deps -r locks/tools.txt
	touch $@

.venv/gpu-$(TENSORRT): pyproject.toml tests/gpu/prepare.sh $(FOLDERS)
	PYTHON='$(PYTHON)' TENSORRT='$(TENSORRT)' WHEELS='$(WHEELS)' tests/gpu/prepare.sh
	touch '$@'

clean:
	rm -rf .venv build dist *.egg-info demo.wav demo.png
