"""The benches that `--bench` knows by name: what each asks for, as its authors publish it.

Verse-Bench and MyBench: evaluation/README.md of OpenMOSS/MOVA. Numbers over several categories are means of theirs; LSE
is a mean over clips, and cpCER divides errors by characters over all clips. DNSMOS and LSE are of Verse-Bench's speech,
set3; of MyBench, whose categories are mixed, all clips are asked for.
"""

from mova_engine.evaluation.benches.bench_items import AskedNumber

VERSE_SIZES = {"set1": 205, "set2": 295, "set3": 100}
MYBENCH_SIZES = {
    "multi-speaker": 27,
    "movie": 12,
    "shot-effect": 30,
    "anime": 20,
    "sports": 20,
    "games": 20,
    "others": 3,
}
SPEAKERS = "multi-speaker"


def _of_mova(speech: tuple[str, ...]) -> tuple[AskedNumber, ...]:
    """What MOVA's evaluation measures. speech: categories of speech."""
    return (
        AskedNumber("IS", "panns-32k", "is_panns", "categories"),
        AskedNumber("DNSMOS", "dnsmos", "dnsmos_p808", "categories", speech),
        AskedNumber("DeSync", "desync", "desync", "categories"),
        AskedNumber("IB-Score", "imagebind", "imagebind", "categories"),
        AskedNumber("LSE-D", "lip-sync", "lse_d", "clips", speech),
        AskedNumber("LSE-C", "lip-sync", "lse_c", "clips", speech),
        AskedNumber("AV-Align", "av-align", "av_align", "categories"),
        AskedNumber("CLAP", "clap", "clap", "categories"),
        AskedNumber("RMS", "loudness", "rms", "categories"),
        AskedNumber("LUFS", "loudness", "lufs", "categories"),
    )


NUMBERS = {
    "verse": _of_mova(("set3",)),
    "mybench": (
        AskedNumber("cpCER", "cpcer", "cpcer_errors", "clips", (SPEAKERS,), per="cpcer_characters"),
        *_of_mova(()),
    ),
    "audio": (
        AskedNumber("FD (PANNs)", "panns-16k", "fd_panns"),
        AskedNumber("FD (PaSST)", "passt", "fd_passt"),
        AskedNumber("FD (VGGish)", "vggish", "fd_vgg"),
        AskedNumber("KL (PANNs)", "panns-16k", "kl_panns"),
        AskedNumber("KL (PaSST)", "passt", "kl_passt"),
        AskedNumber("IS (PANNs)", "panns-16k", "is_panns_16k"),
        AskedNumber("IS (PaSST)", "passt", "is_passt"),
        AskedNumber("CLAP", "clap", "clap"),
    ),
}
