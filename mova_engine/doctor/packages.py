"""Packages that are not what their name says, or that break each other: pitfalls that people fell into."""

import sys

from mova_engine.backend.health import NOTE, OK, Finding, Packages, release
from mova_engine.doctor.examination import Examination

_OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
_NCCL = ("nvidia-nccl-cu11", "nvidia-nccl-cu12", "nvidia-nccl-cu13")


def apex(packages: Packages) -> list[Finding]:
    """The `apex` of PyPI has nothing to do with NVIDIA's."""
    version = packages.version("apex")
    if version is None or packages.has_module("amp_C"):
        return []
    what = f"apex {version} is a web toolkit from PyPI, not NVIDIA Apex; libraries that probe for its name are misled"
    return [Finding(NOTE, what, "pip uninstall apex")]


def flash_attn(packages: Packages) -> list[Finding]:
    """flash-attn 4 installs the namespace of flash-attn 2 without its functions."""
    folder = packages.module_folder("flash_attn")
    if folder is None or (folder / "flash_attn_interface.py").exists():
        return []
    what = "there is a flash_attn without flash_attn_func (as flash-attn 4 leaves it): libraries that look for it fail"
    return [Finding(NOTE, what, "install flash-attn 2, or uninstall flash-attn-4 where only older libraries need it")]


def companions(packages: Packages) -> list[Finding]:
    """torchvision and torchaudio for another torch; diffusers and transformers import them where they are found."""
    found = []
    torch = packages.version("torch") or ""
    do = "pip uninstall {}: the engine needs neither; diffusers and transformers fail to import with it"
    for name in ("torchvision", "torchaudio"):
        version = packages.version(name)
        if version is None:
            continue
        pins = [
            line.split("==")[1].split(";")[0].strip() for line in packages.requires(name) if line.startswith("torch==")
        ]
        if pins and release(pins[0]) != release(torch)[: len(release(pins[0]))]:
            found.append(Finding(NOTE, f"{name} {version} is for torch {pins[0]}, not {torch}", do.format(name)))
        elif sys.platform == "linux" and not packages.torch_is_cuda_build() and "+cpu" not in version:
            what = f"{name} {version} is no CPU build, but torch {torch} is"
            found.append(Finding(NOTE, what, do.format(name)))
    return found


def triton(packages: Packages) -> list[Finding]:
    """triton-ascend installs itself as `triton`, over the other one."""
    both = packages.version("triton"), packages.version("triton-ascend")
    if None in both:
        return []
    folder = packages.module_folder("triton")
    backends = folder / "backends" if folder else None
    names = sorted(p.name for p in backends.iterdir() if p.is_dir() and p.name[0] not in "_.") if backends else []
    what = (
        f"triton {both[0]} and triton-ascend {both[1]} share one folder; its backends now: {', '.join(names) or 'none'}"
    )
    return [Finding(NOTE, what, "keep one of them: uninstall both, then install the one for this device")]


def duplicates(packages: Packages) -> list[Finding]:
    """Distributions that install the same files."""
    found = []
    for group, harm in ((_OPENCV, "overwrite each other's cv2"), (_NCCL, "give torch undefined NCCL symbols")):
        here = [f"{name} {version}" for name in group if (version := packages.version(name))]
        if len(here) > 1:
            do = f"uninstall all of them, then install one: {' or '.join(name.split()[0] for name in here)}"
            found.append(Finding(NOTE, f"{' and '.join(here)} {harm}", do))
    return found


PITFALLS = (apex, flash_attn, companions, triton, duplicates)


def examine_packages(examination: Examination) -> list[Finding]:
    """Every known pitfall."""
    found = [finding for pitfall in PITFALLS for finding in pitfall(examination.around.packages)]
    return found or [Finding(OK, "none of the known pitfalls")]
