"""`make test-isa`: operators, a training run and a sampling run on lowered instruction sets of the CPU.

Each setting limits PyTorch's kernels (ATEN_CPU_CAPABILITY), oneDNN's (ONEDNN_MAX_CPU_ISA) and the engine's own
(MOVA_CPU_ISA), or one of them alone, and is read back from all three before tests run under it. Settings that this CPU
does not have are named and left out. Exit status 1 if a limit has no effect or a test fails.

    python tests/isa.py                             # the selection of tests, on settings that limit all three
    python tests/isa.py --whole sse41 avx -- -n 2   # the whole default suite on these settings
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TORCH, ONEDNN, OWN = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MOVA_CPU_ISA"
SETTINGS = {
    "sse41": {TORCH: "default", ONEDNN: "SSE41", OWN: "baseline"},
    "avx": {TORCH: "default", ONEDNN: "AVX", OWN: "baseline"},
    "avx2": {TORCH: "avx2", ONEDNN: "AVX2", OWN: "avx2"},
    "avx512": {TORCH: "avx512", ONEDNN: "AVX512_CORE", OWN: "avx512"},
    "torch-default": {TORCH: "default"},
    "onednn-sse41": {ONEDNN: "SSE41"},
    "own-baseline": {OWN: "baseline"},
}
_USUAL = tuple(name for name, limits in SETTINGS.items() if len(limits) == 3)
# oneDNN's words for the limits, in the first lines of its log.
_ONEDNN_NAMES = {"SSE41": "SSE4.1", "AVX": "AVX", "AVX2": "AVX2", "AVX512_CORE": "AVX-512"}
# Prints one "name value" a line; oneDNN logs its own while it computes.
_READ_BACK = f"""
import torch, mova_kernels.cpu as own
print("{TORCH}", torch.backends.cpu.get_cpu_capability().lower())
print("{OWN}", own.unavailable() or own.isa())
x = torch.ones(4, 4)
torch.ops.mkldnn._linear_pointwise(x, x, x[0].clone(), "gelu", [], "tanh")
"""
# A case or two of every operator on every implementation; training in both precisions, and sampling.
_SELECTION = (
    "tests/ops/test_operators.py",
    "tests/ops/test_bad_input.py",
    "tests/train/test_trainer.py::test_bf16_trains_and_resumes_exactly",
    "tests/inference/test_pipeline.py::test_clips_do_not_depend_on_their_batch",
    *("-k", "(odd or text or merge or adamw or clip or forced or bf16) and not compile"),
)


def read_back(environment: dict[str, str]) -> dict[str, str]:
    """What PyTorch, oneDNN and the engine's kernels use under an environment, by the limits' names."""
    command = [sys.executable, "-c", _READ_BACK]
    child = subprocess.run(command, env=environment | {"ONEDNN_VERBOSE": "1"}, capture_output=True, text=True, cwd=ROOT)
    if child.returncode:
        raise SystemExit(f"error: {(child.stderr.strip() or f'exit status {child.returncode}').splitlines()[-1]}")
    found = dict(line.split(" ", 1) for line in child.stdout.splitlines() if line.startswith((TORCH, OWN)))
    log = re.search(r"info,cpu,isa:(?:Intel )?(.+)", child.stdout)
    return found | {ONEDNN: log[1] if log else "nothing"}


def heeded(setting: dict[str, str], found: dict[str, str]) -> list[str]:
    """The limits that have no effect, described; empty when all have."""
    wanted = setting | ({ONEDNN: _ONEDNN_NAMES[setting[ONEDNN]]} if ONEDNN in setting else {})
    return [f"{name} is {setting[name]}, in use is {found[name]}" for name in wanted if found[name] != wanted[name]]


def absent(setting: dict[str, str]) -> bool:
    """Whether this CPU lacks what a setting names."""
    import torch

    level = setting.get(TORCH, "default")
    return level != "default" and not getattr(torch.cpu, f"_is_{level}_supported")()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--whole", action="store_true", help="the whole default suite instead of the selection")
    given, options = sys.argv[1:], []
    if "--" in given:
        given, options = given[: given.index("--")], given[given.index("--") + 1 :]
    args = parser.parse_args(given)
    for name in args.settings:
        if name not in SETTINGS:
            parser.error(f"unknown setting '{name}'; known: {', '.join(SETTINGS)}")
    failed = []
    # torch.compile would take from its cache what it made for better instructions.
    caches = tempfile.TemporaryDirectory()
    clean = {name: value for name, value in os.environ.items() if name not in (TORCH, ONEDNN, OWN)}
    for name in args.settings or _USUAL:
        setting = SETTINGS[name]
        if absent(setting):
            print(f"{name}: left out, this CPU does not have it")
            continue
        environment = clean | setting | {"TORCHINDUCTOR_CACHE_DIR": str(Path(caches.name) / name)}
        found = read_back(environment)
        print(f"{name}: PyTorch {found[TORCH]}, oneDNN {found[ONEDNN]}, own kernels {found[OWN]}", flush=True)
        wrong = heeded(setting, found)
        print("".join(f"error: {line}\n" for line in wrong), end="")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "pytest", "-q", "-rf", *([] if args.whole else _SELECTION), *options]
        status = subprocess.run(command, env=environment, cwd=ROOT).returncode
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{name}: {'FAILED' if status or wrong else 'passed'}, {seconds:.0f} s of CPU time", flush=True)
        failed += [name] if status or wrong else []
    print(f"failed: {', '.join(failed)}" if failed else "every setting passed")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
