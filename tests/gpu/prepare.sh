#!/usr/bin/env bash
# .venv for a machine with an NVIDIA GPU where nothing is prepared but its driver, Python and make; on Debian and
# Ubuntu, root also gets what PyCUDA is built with. CUDA's headers and compiler come from PyPI. TENSORRT=tensorrt-rtx
# takes TensorRT-RTX (GeForce and RTX GPUs), TENSORRT=none neither, else TensorRT; what is not taken is removed, since
# both would be asked for plans. WHEELS=FOLDER takes everything from the wheels in that folder and reaches no network.
# All that is missing is named before anything is installed or removed.
set -euo pipefail
shopt -s nullglob
wheels=${WHEELS:-}
[[ -z $wheels || $wheels = /* ]] || wheels=$PWD/$wheels
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin  # where ldconfig is, which Debian leaves out of a user's
tensorrt=${TENSORRT:-tensorrt}
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
missing=()  # sentences
debs=()     # Debian's names

driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1) || driver=
if [ -z "$driver" ]; then
    missing+=("nvidia-smi, which comes with NVIDIA's driver, does not run. Install the driver, 580 or newer.")
elif [ "${driver%%.*}" -lt 580 ]; then
    missing+=("The driver is $driver; CUDA 13 needs 580 or newer. Update it.")
fi
libcuda=$(ldconfig -p | awk '/libcuda\.so\.1 .*(x86-64|AArch64)/ && !found {print $NF; found = 1}') || true
if [ -z "$libcuda" ]; then
    missing+=("ldconfig -p lists no 64-bit libcuda.so.1, the driver's library, which PyCUDA is linked to. \
Install it (libcuda1 in Debian), or name its folder in /etc/ld.so.conf.d and run ldconfig as root.")
fi

build=  # whether PyCUDA is built here: with a folder, only where that has its source and no wheel
sources=("$wheels"/pycuda-*.tar.gz)
built=("$wheels"/pycuda-*.whl)
[ -n "$wheels" ] && { [ "${#sources[@]}" = 0 ] || [ "${#built[@]}" -gt 0 ]; } || build=yes
[ -x .venv/bin/pip ] || "$python" -c 'import ensurepip, venv' 2>/dev/null || debs+=("$version-venv")
[ "${#debs[@]}" -gt 0 ] || [ -z "$wheels" ] || [ -x .venv/bin/pip ] || "$python" -m venv .venv  # its pip is asked below
if [ -n "$build" ]; then
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
        || debs+=("$version-dev")
    command -v g++ >/dev/null || debs+=(g++)
fi
if [ "${#debs[@]}" -gt 0 ] && { [ -n "$wheels" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; }; then
    missing+=("${debs[*]} (Debian's names) must be installed first: .venv${build:+ and PyCUDA} cannot be made without.")
fi

first=('nvidia-cuda-nvrtc==13.*' 'cuda-bindings==13.*')
rest=('pytest>=8' 'onnxruntime-gpu[cuda,cudnn]>=1.31')
extras=plot,export
[ "$tensorrt" = none ] || rest+=("$tensorrt")
[ -z "$build" ] || first+=('nvidia-cuda-runtime==13.*' 'nvidia-cuda-profiler-api==13.*')
[ -n "$wheels" ] && command -v compute-sanitizer >/dev/null || first+=('nvidia-cuda-sanitizer-api==13.*')

pip=".venv/bin/pip --disable-pip-version-check"
from=()
system=
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || missing+=("WHEELS names $wheels, which is no folder. Name the folder that holds the wheels.")
    # The user's settings may name indexes, so they are left out. Our build and PyCUDA's take the setuptools of .venv.
    export PIP_CONFIG_FILE=/dev/null
    from=(--isolated --no-index --find-links "$wheels" --no-build-isolation --only-binary :all:)
    [ -z "$build" ] || from+=(--no-binary pycuda)
    first+=('setuptools>=77' numpy mako platformdirs pytools)  # the last three are PyCUDA's, which may be a source
    # PyTorch's wheel has gigabytes, which nobody likes to carry: in a folder without it all packages of $python count.
    # They may be a virtual environment's, which --system-site-packages would not find.
    torch=("$wheels"/torch-*.whl)
    packages='import sys; print(*(path for path in sys.path if path.endswith("-packages")), sep="\n")'
    [ "${#torch[@]}" -gt 0 ] || system=$("$python" -c "$packages")
    checker=$python
    [ ! -x .venv/bin/python ] || checker=.venv/bin/python
    asked=("${first[@]}" "${rest[@]}")
    [ -n "$build" ] || asked+=(pycuda)
    absent=$("$checker" tests/gpu/wheels.py "$wheels" "$system" "$extras" "${asked[@]}")
    [ -z "$absent" ] || missing+=("$absent")
fi
if [ "${#missing[@]}" -gt 0 ]; then
    printf '%s\n' "Nothing was installed, for this is missing:" "${missing[@]/#/- }" >&2
    exit 1
fi

if [ "${#debs[@]}" -gt 0 ]; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${debs[@]}"
fi
[ -x .venv/bin/pip ] || "$python" -m venv .venv
rm -f .venv/render .venv/develop .venv/gpu-*  # what make takes .venv for

packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$system" > "$packages/system.pth"
while read -r path; do  # ONNX Runtime and cuda-bindings look for CUDA's libraries beside themselves alone
    for library in "$path"/nvidia/*/lib/*.so*; do
        link=$packages/${library#"$path/"}
        mkdir -p "${link%/*}"
        [ -e "$link" ] || ln -sf "$library" "$link"
    done
done <<< "$system"

case $tensorrt in
    none) other='tensorrt.*' ;;
    *rtx*) other='tensorrt([-_]cu.*)?' ;;
    *) other='tensorrt[-_]rtx.*' ;;
esac
there=$($pip list --local --format=freeze | sed 's/==.*//')
# onnxruntime and onnxruntime-gpu share a folder, so one takes the other's files along.
! grep -qx onnxruntime <<< "$there" || other="onnxruntime|onnxruntime-gpu|$other"
mapfile -t others < <(grep -Ex "$other" <<< "$there")
[ "${#others[@]}" = 0 ] || $pip uninstall --quiet -y "${others[@]}"

$pip install --quiet "${from[@]}" "${first[@]}"

# PyCUDA is built here, against those headers and the driver's library, without cuRAND. It reads its settings from the
# home folder: a made one, where pip still finds its own settings, credentials and cache.
made=$PWD/.venv/pycuda
mkdir -p "$made"
ln -sf "$libcuda" "$made/libcuda.so"
echo "CUDA_ENABLE_CURAND = False" > "$made/.aksetup-defaults.py"
for own in .config .pip .netrc .cache; do
    [ ! -e "$HOME/$own" ] || ln -sfn "$HOME/$own" "$made/$own"
done
include=$(.venv/bin/python -c 'import sys; print(*(path + "/nvidia/cu13/include" for path in sys.path), sep=":")')
HOME=$made CPATH=$include LIBRARY_PATH=$made $pip install --quiet "${from[@]}" pycuda

$pip install --quiet "${from[@]}" -e ".[$extras]" "${rest[@]}"
.venv/bin/python - "$tensorrt" << 'CHECK'
import importlib
import sys

from notewave.backends.device.driver import CudaDevice

device, asked, runtimes = CudaDevice(), sys.argv[1], []
required = "onnxruntime" if asked == "none" else "tensorrt_rtx" if "rtx" in asked else "tensorrt"
for name in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
    try:
        runtimes.append(f"{name} {importlib.import_module(name).__version__}")
    except (ImportError, OSError) as error:
        if name == required:
            sys.exit(f"{name} was installed and does not import ({error}). Remove .venv and prepare it anew.")
print(f"{device.name}, compute capability {device.capability}, CUDA {device.driver}, {', '.join(runtimes)}")
CHECK
