"""`make test-isa`: operators, a training run and a sampling run on lowered instruction sets of the CPU.

Each setting limits PyTorch's kernels (ATEN_CPU_CAPABILITY) and with them its matrix products by MKL
(MKL_ENABLE_INSTRUCTIONS), oneDNN's (ONEDNN_MAX_CPU_ISA) and the engine's own (MOVA_CPU_ISA), or one of these alone, and
is read back from all of them before tests run under it. MKL heeds its limit on Intel's CPUs alone, and is not asked
elsewhere. Settings that this CPU does not have are named and left out. Exit status 1 if a limit has no effect or a test
fails.

    python tests/isa.py                             # the selection of tests, on settings that limit everything
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
TORCH, MKL, ONEDNN, OWN = "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "MOVA_CPU_ISA"
# MKL has nothing between SSE4.2 and AVX2.
SETTINGS = {
    "sse41": {TORCH: "default", MKL: "SSE4_2", ONEDNN: "SSE41", OWN: "baseline"},
    "avx": {TORCH: "default", MKL: "SSE4_2", ONEDNN: "AVX", OWN: "baseline"},
    "avx2": {TORCH: "avx2", MKL: "AVX2", ONEDNN: "AVX2", OWN: "avx2"},
    "avx512": {TORCH: "avx512", MKL: "AVX512", ONEDNN: "AVX512_CORE", OWN: "avx512"},
    "torch-default": {TORCH: "default", MKL: "SSE4_2"},
    "onednn-sse41": {ONEDNN: "SSE41"},
    "own-baseline": {OWN: "baseline"},
}
_USUAL = tuple(name for name, limits in SETTINGS.items() if len(limits) == 4)
# Words for the limits in the first lines of the logs of oneDNN and MKL.
_LOGGED = {
    ONEDNN: {
        "SSE41": "SSE4.1",
        "AVX": "AVX",
        "AVX2": "AVX2",
        "AVX512_CORE": "AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    },
    MKL: {"SSE4_2": "SSE4.2", "AVX2": "AVX2", "AVX512": "AVX-512"},
}
# Prints one "name value" a line; oneDNN logs its own while it computes.
_READ_BACK = f"""
import torch, mova_kernels.cpu as own
print("{TORCH}", torch.backends.cpu.get_cpu_capability().lower())
print("{OWN}", own.unavailable() or own.isa())
x = torch.ones(4, 4)
torch.ops.mkldnn._linear_pointwise(x, x, x[0].clone(), "gelu", [], "tanh")
x @ x
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
    """What PyTorch, MKL, oneDNN and the engine's kernels use under an environment, by the limits' names; without MKL's
    where it does not say.
    """
    command = [sys.executable, "-c", _READ_BACK]
    logging = environment | {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    child = subprocess.run(command, env=logging, capture_output=True, text=True, cwd=ROOT)
    if child.returncode:
        raise SystemExit(f"error: {(child.stderr.strip() or f'exit status {child.returncode}').splitlines()[-1]}")
    found = dict(line.split(" ", 1) for line in child.stdout.splitlines() if line.startswith((TORCH, OWN)))
    log = re.search(r"info,cpu,isa:(?:Intel )?(.+)", child.stdout)
    mkl = re.search(r"MKL_VERBOSE .* architecture .*?\(Intel\(R\) (SSE4\.2|AVX2|AVX-512)\)", child.stdout)
    return found | {ONEDNN: log[1] if log else "nothing"} | ({MKL: mkl[1]} if mkl else {})


def heeded(setting: dict[str, str], found: dict[str, str]) -> list[str]:
    """The limits that have no effect, described; empty when all have."""
    wanted = {name: _LOGGED.get(name, {}).get(value, value) for name, value in setting.items() if name in found}
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
    clean = {name: value for name, value in os.environ.items() if name not in (TORCH, MKL, ONEDNN, OWN)}
    for name in args.settings or _USUAL:
        setting = SETTINGS[name]
        if absent(setting):
            print(f"{name}: left out, this CPU does not have it")
            continue
        environment = clean | setting | {"TORCHINDUCTOR_CACHE_DIR": str(Path(caches.name) / name)}
        found = read_back(environment)
        libraries = f"PyTorch {found[TORCH]}, MKL {found.get(MKL, 'as it likes')}, oneDNN {found[ONEDNN]}"
        print(f"{name}: {libraries}, own kernels {found[OWN]}", flush=True)
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
