"""What a folder of wheels lacks for tests and benchmarks on a GPU, said in one go with its cure.

pip stops at the first distribution that it cannot find; this names all, by pip's own rules for names and tags.

    python wheels.py FOLDER SYSTEM EXTRAS REQUIREMENT...

SYSTEM: folders of packages that count as well, a line each. EXTRAS: of the project in the working directory.
"""

import sys
import sysconfig
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from shlex import join

folder, system, chosen, *asked = sys.argv[1:]
sys.path += system.splitlines()
try:
    from pip._vendor.packaging import specifiers, tags, utils
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.version import Version
except ImportError:
    print(f"Which wheels {folder} lacks can be said once .venv can be made.")
    sys.exit()
try:
    import tomllib
except ImportError:  # before Python 3.11
    from pip._vendor import tomli as tomllib

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
asked += project["dependencies"] + [need for name in chosen.split(",") for need in extras[name]]

python, fitting, wheels, faults = ".".join(map(str, sys.version_info[:3])), set(tags.sys_tags()), [], []
for path in Path(folder).glob("*.whl"):
    try:
        fits = utils.parse_wheel_filename(path.name)[3] & fitting
    except utils.InvalidWheelFilename:
        continue
    wheel = next(iter(metadata.distributions(path=[str(path)])), None)
    if wheel is None:
        faults.append(f"{path} is cut short, or no wheel. Copy or make it again.")
    elif fits and python in specifiers.SpecifierSet(wheel.metadata.get("Requires-Python", "")):
        wheels.append(wheel)
wheels.sort(key=lambda wheel: Version(wheel.version), reverse=True)
choices = defaultdict(list)
for distribution in metadata.distributions():
    choices[utils.canonicalize_name(distribution.metadata.get("Name", ""))].append(distribution)
own = metadata.distributions(path=[sysconfig.get_path("purelib")])
if any(distribution.metadata.get("Name") == "onnxruntime" for distribution in own):
    choices.pop("onnxruntime-gpu", None)  # it goes with that one, below
for wheel in wheels:
    choices[utils.canonicalize_name(wheel.metadata["Name"])].append(wheel)

absent, seen, needs = {}, set(), [Requirement(text) for text in asked]
for need in needs:  # grows by what each needs in turn
    if str(need) in seen:
        continue
    seen.add(str(need))
    name = utils.canonicalize_name(need.name)
    found = [choice for choice in choices[name] if need.specifier.contains(choice.version, prereleases=True)]
    if found:
        wanted = [Requirement(text) for text in found[0].requires or []]
        sides = [{"extra": extra} for extra in need.extras or [""]]
        needs += [each for each in wanted if not each.marker or any(map(each.marker.evaluate, sides))]
    else:
        kept = absent.setdefault(name, Requirement(name))
        kept.extras |= need.extras
        kept.specifier &= need.specifier

cures = []
if absent.pop("pycuda", None):
    cures = [join([".venv/bin/pip", "wheel", "--no-deps", "-w", folder, "pycuda"]) + "  # after make gpu-test there"]
if absent:
    made = ["python{}.{}".format(*sys.version_info), "-m", "pip", "wheel", "-w", folder, *map(str, absent.values())]
    cures.insert(0, join(made))
if cures:
    faults.append(f"{folder} lacks wheels. Make them on a machine with a network, of the same kind and Python:")
print("\n- ".join(faults), *cures, sep="\n    ")
