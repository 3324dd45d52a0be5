#!/usr/bin/env bash
# A day with a GPU, from a clean clone on a machine that has a driver, the CUDA toolkit and Python: every test, those for
# the GPU first, then real-time factors as JSON. FLAVOUR=gpu takes TensorRT (data-centre GPUs), rtx TensorRT-RTX.
set -euo pipefail
cd "$(dirname "$0")/../.."
extras=cpu,rtx
[ "${FLAVOUR:-rtx}" = rtx ] || extras=gpu  # its onnxruntime-gpu takes the place of onnxruntime
out=${OUT:-gpu-day}
mkdir -p "$out"
nvidia-smi | tee "$out/nvidia-smi.txt"
python3 -m venv .venv-gpu
.venv-gpu/bin/pip install -q -e ".[$extras,export,train,plot,dev]" pycuda cuda-bindings
.venv-gpu/bin/pip freeze > "$out/packages.txt"
.venv-gpu/bin/pytest -m gpu -rs --junitxml "$out/gpu-tests.xml" | tee "$out/gpu-tests.txt"
.venv-gpu/bin/pytest -m "not gpu" -rs | tee "$out/tests.txt"
.venv-gpu/bin/notewave build piano --precision fp16 | tee "$out/build.txt"
.venv-gpu/bin/notewave bench --backend tensorrt --json "$out/bench.json" --plot "$out/bench.png" | tee "$out/bench.txt"
