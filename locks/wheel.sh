#!/bin/sh
# locks/wheel.sh PYTHON SOURCE OUT: the wheel of the tree at SOURCE, with PYTHON's setuptools, which that must have. The
# same tree gives the same bytes: times are the last commit's (outside of git, the first that a zip knows), permissions
# those of a umask of 022, whatever they are on the disk.
set -eu
python=$1 source=$2 out=$3
umask 022
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
for name in LICENSE README.md pyproject.toml engine export kernels benchmarks; do
    cp -R "$source/$name" "$made"
done
chmod -R u=rwX,go=rX "$made"
: "${SOURCE_DATE_EPOCH:=$(git -C "$source" log -1 --format=%ct 2>/dev/null || echo 315532800)}"
export SOURCE_DATE_EPOCH
mkdir -p "$out"
# PYTHONWARNINGS: setuptools takes folders of data for packages that were forgotten.
PYTHONWARNINGS=ignore "$python" -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir "$out" "$made"
