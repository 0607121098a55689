"""A machine as operators' declarations see it: kind of device, generation, packages. It need not be here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mova_engine.errors import MovaError, suggest

Version = tuple[int, int]

# Kinds of device, by the names that torch gives them.
KINDS = ("cpu", "cuda", "npu")
# Packages that serve operators -> the modules by which an installed one is known.
PACKAGES = {
    "flash-attn-2": ("flash_attn.flash_attn_interface",),
    "flash-attn-3": ("flash_attn_interface",),
    "flash-attn-4": ("flash_attn.cute.interface",),
    "sageattention": ("sageattention",),
    "apex": ("amp_C", "fused_layer_norm_cuda", "apex.multi_tensor_apply", "apex.normalization.fused_layer_norm"),
    "triton": ("triton",),
    "torch_npu": ("torch_npu",),
    "mindiesd": ("mindiesd",),
}
# Compiled parts of the engine, which are there where they were built; they are assumed like packages.
LIBRARIES = ("cpu-kernels", "cuda-kernels")
# What comes with an installation for a kind of device: a build of torch for CUDA requires triton, and setup builds the
# kernels for CPUs.
BROUGHT = {"cpu": ("cpu-kernels",), "cuda": ("triton",), "npu": ("torch_npu",)}
# Kinds of device that are waited for between a backward and exchanges of its gradients, but for those of FSDP2.
_WAITED_FOR = frozenset({"npu"})
# Ascend's products by the name that torch_npu gives a device: its beginning.
PRODUCTS = {"910a2": "Ascend910B", "910a3": "Ascend910_93", "310p": "Ascend310P"}
# Instruction sets of a CPU that can be assumed.
FEATURES = ("avx2", "avx512", "avx512_bf16", "amx", "neon")
_PACKAGE_OF = {module: package for package, modules in PACKAGES.items() for module in modules}
_SM = re.compile(r"sm_?(\d+)(\d)[a-z]?|(\d+)\.(\d)")


@dataclass(frozen=True)
class Machine:
    """A machine that is described, not asked.

    kind: "cpu", "cuda" or "npu". capability: of an NVIDIA GPU its compute capability, (9, 0); of an Ascend device its
    product, "910a2"; of a CPU its instruction set, which is only named: no choice depends on it; None: not known,
    so that nothing is refused for it. packages: names in PACKAGES, what is not in there by its module, and LIBRARIES.
    """

    kind: str
    capability: Version | str | None = None
    packages: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MovaError(f"unknown device '{self.kind}'.{suggest(self.kind, KINDS)} Known: {', '.join(KINDS)}")

    def __str__(self) -> str:
        capability = self.capability
        if isinstance(capability, tuple):
            capability = "sm{}{}".format(*capability)
        words = [self.kind, *([capability] if capability else [])]
        added = sorted(self.packages.difference(BROUGHT[self.kind]))
        return " ".join(words) + (f" with {', '.join(added)}" if added else "")

    @property
    def version(self) -> Version | None:
        """The compute capability of an NVIDIA GPU; None for other devices, and where it is not known."""
        return self.capability if isinstance(self.capability, tuple) else None

    @property
    def sums_in_backward(self) -> bool:
        """Whether whole gradients are exchanged while the backward makes others, as `Backend.sums_in_backward`."""
        return self.kind not in _WAITED_FOR

    def lacks(self, need: str) -> str | None:
        """Why a module, "module:attribute" or library is not there; None when it is."""
        module = need.partition(":")[0]
        package = _PACKAGE_OF.get(module, module)
        if package in self.packages:
            return None
        return f"the engine's {package} were not built" if package in LIBRARIES else f"{package} is not installed"

    def outside(self, least: Version, last: Version | None) -> str | None:
        """Why an NVIDIA GPU is not of a generation from `least` to `last` (None: the newest); None when it is."""
        found = self.version
        if found is None or (found >= least and (last is None or found <= last)):
            return None
        need = f"{least[0]}.{least[1]}" + (" and later" if last is None else f" to {last[0]}.x")
        return f"needs compute capability {need}, this GPU has {found[0]}.{found[1]}"

    def tried(self, operator: Any, implementation: Any, training: bool, dtypes: tuple[str, ...]) -> str | None:
        """What only the machine itself can tell against an implementation of an operator (`ops.declarations`). One that
        is not here is not asked.
        """
        return None

    def timed(self, operator: str, training: bool, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        """The implementations of an operator that were timed on this machine, the one to take first; () for none, as of
        a machine that is not here.
        """
        return ()


def assumed_machine(device: str, capability: str | None = None, packages: Iterable[str] = ()) -> Machine:
    """A machine as the command line says it: `--device cuda --assume sm90 --with flash-attn-3`.

    What comes with every installation for such a device (BROUGHT) is there too. MovaError for a name that is not known.
    """
    machine = Machine(device)
    packages = tuple(packages)
    known = (*PACKAGES, *LIBRARIES)
    for package in packages:
        if package not in known:
            raise MovaError(
                f"unknown package '{package}'.{suggest(package, known)} Known to serve operators: {', '.join(known)}"
            )
    found = None if capability is None else _capability(machine.kind, capability)
    return Machine(machine.kind, found, frozenset((*packages, *BROUGHT[machine.kind])))


def _capability(kind: str, text: str) -> Version | str:
    known = {"cpu": FEATURES, "cuda": ("sm80", "sm89", "sm90", "sm100", "sm120"), "npu": tuple(PRODUCTS)}[kind]
    lower = text.lower()
    if kind == "cuda" and (match := _SM.fullmatch(lower)):
        major, minor = (group for group in match.groups() if group is not None)
        return int(major), int(minor)
    if kind != "cuda" and lower in known:
        return lower
    raise MovaError(f"unknown {kind} machine '{text}'.{suggest(lower, known)} Known: {', '.join(known)}")
