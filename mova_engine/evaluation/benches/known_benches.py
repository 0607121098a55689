"""The benches that `--bench` knows by name: what each asks for, as its authors publish it.

Verse-Bench and MyBench: evaluation/README.md of OpenMOSS/MOVA. Numbers over all three sets are means of the sets'
means; LSE is a mean over clips, and cpCER divides errors by characters over all of them.
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
_SPEECH = ("set3",)

VERSE = (
    AskedNumber("RMS", "loudness", "rms", "categories"),
    AskedNumber("LUFS", "loudness", "lufs", "categories"),
    AskedNumber("IS", "sound-classes", "inception_score", "categories"),
    AskedNumber("DNSMOS", "dnsmos", "dnsmos_p808", "categories", _SPEECH),
    AskedNumber("DeSync", "desync", "desync", "categories"),
    AskedNumber("IB-Score", "imagebind", "imagebind", "categories"),
    AskedNumber("AV-Align", "av-align", "av_align", "categories"),
    AskedNumber("CLAP", "clap", "clap", "categories"),
    AskedNumber("LSE-D", "lip-sync", "lse_d", "clips", _SPEECH),
    AskedNumber("LSE-C", "lip-sync", "lse_c", "clips", _SPEECH),
)
MYBENCH = (AskedNumber("cpCER", "transcript", "cpcer_errors", "clips", (SPEAKERS,), per="cpcer_characters"),)
AUDIO = (
    AskedNumber("FD", "sound-classes", "frechet_distance"),
    AskedNumber("KL", "sound-classes", "kl"),
    AskedNumber("IS", "sound-classes", "inception_score"),
    AskedNumber("CLAP", "clap", "clap"),
)
NUMBERS = {"verse": VERSE, "mybench": MYBENCH, "audio": AUDIO}
