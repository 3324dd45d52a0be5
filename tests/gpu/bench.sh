#!/usr/bin/env bash
# Plans and benchmarks of the bundled voice and of random weights of the published size, on the GPU by TensorRT and by
# ONNX Runtime and, for the bundled voice, on the CPU beside it: build/gpu/*.json, pictures, and table.md for the README.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/gpu
notewave=.venv/bin/notewave
mkdir -p "$out"
nvidia-smi > "$out/nvidia-smi.txt"
.venv/bin/pip freeze > "$out/packages.txt"
[ -f "$out/base/voice.json" ] || $notewave export --random base --out "$out/base"
for voice in band "$out/base"; do
    $notewave -v build "$voice" --precision fp16 2>&1 | tee "$out/build-$(basename "$voice").txt"
done
{
    echo '```'
    $notewave bench --voice band --backend tensorrt cuda cpu --json "$out/band.json" --plot "$out/band.png"
    echo "launched without CUDA graphs:"
    $notewave bench --voice band --backend tensorrt --option graphs=false --json "$out/band-eager.json"
    $notewave bench --voice "$out/base" --backend tensorrt cuda --steps 20 100 --batch 1 4 \
        --json "$out/base.json" --plot "$out/base.png"
    echo '```'
} | tee "$out/table.md"
