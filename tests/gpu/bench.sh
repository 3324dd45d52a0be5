#!/usr/bin/env bash
# Plans and benchmarks of the bundled voice and of random weights of the published size, on the GPU by TensorRT and by
# ONNX Runtime and, for the bundled voice, on the CPU beside it: build/gpu/*.json, pictures, and table.md for the README.
# What fails is named in the table and leaves the rest to run; the exit status is 1 then.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/gpu
notewave=.venv/bin/notewave
mkdir -p "$out"
nvidia-smi > "$out/nvidia-smi.txt"
.venv/bin/pip freeze > "$out/packages.txt"

status=0
try() {  # NAME COMMAND...: run a command; where it fails, say so on standard output, with its last line of errors
    local name=$1
    shift
    if ! { "$@" 2>&1 >&3 | tee "$out/$name.txt" >&2; } 3>&1; then
        echo "$name FAILED: $(tail -n 1 "$out/$name.txt")"
        status=1
    fi
}
apart() {  # COMMAND...: what it prints is no table
    "$@" >&2
}
bench() {  # NAME ARGUMENTS...: a table, NAME.json and NAME.png
    local name=$1
    shift
    rm -f "$out/$name".{json,png}  # an earlier run's
    try "$name" "$notewave" bench "$@" --json "$out/$name.json" --plot "$out/$name.png"
}

{
    echo '```'
    [ -f "$out/base/voice.json" ] || try export-base apart "$notewave" export --random base --out "$out/base"
    for voice in band "$out/base"; do
        try "build-$(basename "$voice")" apart "$notewave" -v build "$voice" --precision fp16
    done
    for backend in tensorrt cuda cpu; do
        bench "band-$backend" --voice band --backend "$backend"
    done
    echo "launched without CUDA graphs:"
    bench band-tensorrt-eager --voice band --backend tensorrt --option graphs=false
    for backend in tensorrt cuda; do
        bench "base-$backend" --voice "$out/base" --backend "$backend" --steps 20 100 --batch 1 4
    done
    echo '```'
    exit "$status"
} | tee "$out/table.md"
