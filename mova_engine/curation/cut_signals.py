"""What the cut measures of every clip in passing: columns of scores, which are then not measured by these."""

# Rises when the same unit gives other clips or other signals.
CUT_VERSION = 1
# A clip may lack some: a silent one has no loudness.
SIGNAL_COLUMNS = frozenset(
    {
        "shot_seconds_shortest",
        "speech_share",
        "speech_seconds",
        "longest_pause",
        "silence",
        "digital_silence",
        "leading_silence",
        "trailing_silence",
        "clipping",
        "band_edge",
        "rms",
        "lufs",
        "motion",
        "still_share",
    }
)
