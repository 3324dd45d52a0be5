#!/usr/bin/env bash
# .venv for a machine with an NVIDIA GPU where nothing is prepared but its driver, Python and make; on Debian and Ubuntu,
# root also gets what PyCUDA is built with. CUDA's headers and compiler come from PyPI. TENSORRT=tensorrt-rtx takes
# TensorRT-RTX (GeForce and RTX GPUs), else TensorRT; the other is removed, for both would be asked for plans.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin  # where ldconfig is, which Debian leaves out of a user's
tensorrt=${TENSORRT:-tensorrt}

driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
if [ "${driver%%.*}" -lt 580 ]; then
    echo "The driver is $driver; CUDA 13 needs 580 or newer. Update it." >&2
    exit 1
fi
libcuda=$(ldconfig -p | awk '/libcuda\.so\.1 .*(x86-64|AArch64)/ && !found {print $NF; found = 1}') || true
if [ -z "$libcuda" ]; then
    echo "ldconfig -p lists no 64-bit libcuda.so.1, the driver's library, which PyCUDA is linked to." \
        "Install it (libcuda1 in Debian), or name its folder in /etc/ld.so.conf.d and run ldconfig as root." >&2
    exit 1
fi

python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("$version-venv")
"$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
    || missing+=("$version-dev")
command -v g++ >/dev/null || missing+=(g++)
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "PyCUDA cannot be built here: ${missing[*]} (Debian's names) must be installed first." >&2
        exit 1
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=".venv/bin/pip --disable-pip-version-check --quiet"

$pip uninstall -y onnxruntime onnxruntime-gpu  # they share a folder, so one takes the other's files along
$pip install 'nvidia-cuda-runtime==13.*' 'nvidia-cuda-profiler-api==13.*' 'nvidia-cuda-nvrtc==13.*' \
    'nvidia-cuda-sanitizer-api==13.*' 'cuda-bindings==13.*'

# PyCUDA is built here, against those headers and the driver's library, without cuRAND. It reads its settings from the
# home folder: a made one, where pip still finds its own settings, credentials and cache.
made=$PWD/.venv/pycuda
mkdir -p "$made"
ln -sf "$libcuda" "$made/libcuda.so"
echo "CUDA_ENABLE_CURAND = False" > "$made/.aksetup-defaults.py"
for own in .config .pip .netrc .cache; do
    [ ! -e "$HOME/$own" ] || ln -sfn "$HOME/$own" "$made/$own"
done
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
HOME=$made CPATH=$packages/nvidia/cu13/include LIBRARY_PATH=$made $pip install pycuda

case $tensorrt in
    *rtx*) other='^tensorrt([-_]cu.*)?$' ;;
    *) other='^tensorrt[-_]rtx' ;;
esac
mapfile -t others < <($pip list --format=freeze | sed 's/==.*//' | grep -E "$other")
[ "${#others[@]}" = 0 ] || $pip uninstall -y "${others[@]}"
$pip install -e '.[plot,export,dev]' 'onnxruntime-gpu[cuda,cudnn]' "$tensorrt"
.venv/bin/python - << 'CHECK'
from notewave.backends.device.driver import CudaDevice
from notewave.backends.trt.plans import tensorrt_modules

device, trt = CudaDevice(), tensorrt_modules()[0]
print(f"{device.name}, compute capability {device.capability}, CUDA {device.driver}, {trt.__name__} {trt.__version__}")
CHECK
