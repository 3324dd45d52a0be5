#!/usr/bin/env bash
# Plans and benchmarks of the bundled voice, rendered and live, and of random weights of the published size on the GPU,
# by each engine that is installed, the bundled voice on the CPU beside it, and a step of the published size beside
# PyTorch's: build/gpu/*.json, pictures, and table.md for the README. What fails is named in the table and leaves the
# rest to run; the exit status is 1 then.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/gpu
notewave=.venv/bin/notewave
mkdir -p "$out"
nvidia-smi > "$out/nvidia-smi.txt"
.venv/bin/pip freeze > "$out/packages.txt"

installed=$(.venv/bin/python - << 'INSTALLED'
import sys

from notewave.backends.device.plans import FLAVOURS, ONNXRUNTIME
from notewave.backends.trt.modules import tensorrt_modules
from notewave.errors import BackendError


def check(flavour):
    if flavour != ONNXRUNTIME:
        tensorrt_modules(flavour)
        return
    from notewave.backends.ort.providers import check_provider

    check_provider()


found = []
for flavour in FLAVOURS:
    try:
        check(flavour)
        found.append(flavour)
    except (BackendError, ImportError) as error:
        print(f"{flavour} is left out: {error}", file=sys.stderr)
print(*found)
INSTALLED
)
read -ra flavours <<< "$installed"
backends=()  # of those engines; the two TensorRTs are one
[[ "${flavours[*]}" != *tensorrt* ]] || backends+=(tensorrt)
[[ "${flavours[*]}" != *onnxruntime* ]] || backends+=(cuda)

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
    echo "$name:"
    try "$name" "$notewave" -v bench "$@" --json "$out/$name.json" --plot "$out/$name.png"
}

{
    echo '```'
    [ -f "$out/base/voice.json" ] || try export-base apart "$notewave" export --random base --out "$out/base"
    for voice in band "$out/base"; do
        for flavour in "${flavours[@]}"; do
            try "build-$(basename "$voice")-$flavour" \
                apart "$notewave" -v build "$voice" --precision fp16 --flavour "$flavour"
        done
    done
    for backend in "${backends[@]}" cpu; do
        bench "band-$backend" --voice band --backend "$backend"
    done
    for backend in "${backends[@]}"; do  # whole songs launched without CUDA graphs
        bench "band-$backend-eager" --voice band --backend "$backend" --option graphs=false --launches 0
    done
    for backend in "${backends[@]}" cpu; do  # played live by the clock, in hops as short as they can be
        bench "live-$backend" live --backend "$backend" --set --notes 0 --clock-song engine/bundled/songs/band.mid
    done
    for backend in "${backends[@]}"; do
        for batch in 1 4 16; do  # by itself each: cases of one run share the GPU's memory
            bench "base-$backend-$batch" --voice "$out/base" --backend "$backend" --batch "$batch" --launches 1
        done
    done
    bench peer-gpu peer --gpu --checkpoint "$out/base"
    echo '```'
    exit "$status"
} | tee "$out/table.md"
