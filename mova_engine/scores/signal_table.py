"""Scores that need neither weights nor a wheel's networks: from the signals themselves."""

from mova_engine.scores.score_declaration import Score, ScoreColumn

_CLIP = "mova_engine.scores.clip_scores"
SIGNAL_SCORES = (
    Score(
        "speech-lag",
        f"{_CLIP}:speech_lag",
        (ScoreColumn("speech_lag", "s", "picture behind sound; negative: sound late"),),
        version=2,
    ),
    Score(
        "loudness",
        f"{_CLIP}:loudness",
        (
            ScoreColumn("rms", "", "root mean square of the sound; full scale is 1", 0, None),
            ScoreColumn("lufs", "LUFS", "integrated loudness, BS.1770", -70, None),
        ),
        version=3,
    ),
    Score(
        "sound-quality",
        f"{_CLIP}:sound_quality",
        (
            ScoreColumn("silence", "", "share of the sound below -50 dBFS", 0, 1, "down"),
            ScoreColumn("digital_silence", "", "share of the sound that is exactly zero", 0, 1, "down"),
            ScoreColumn("leading_silence", "", "share that is silent at the start", 0, 1, "down"),
            ScoreColumn("trailing_silence", "", "share that is silent at the end", 0, 1, "down"),
            ScoreColumn("band_edge", "Hz", "highest frequency within 50 dB of the strongest", 0, None, "up"),
            ScoreColumn("clipping", "", "share of samples cut at full scale", 0, 1, "down"),
        ),
        version=3,
    ),
    Score(
        "sound-quality-mova",
        f"{_CLIP}:sound_quality_of_mova",
        (
            ScoreColumn("silence_mova", "", "share of silence between sounds, 40 dB below the loudest", 0, 1),
            ScoreColumn("snr_mova", "dB", "power of the sound against that silence"),
            ScoreColumn("bandwidth_mova", "Hz", "standard deviation of the spectrum", 0, None),
        ),
        conventions=("mova",),
    ),
    Score(
        "av-align",
        f"{_CLIP}:av_align",
        (ScoreColumn("av_align", "", "onsets of sound that meet peaks of motion, of all", 0, 1, "up"),),
        version=2,
        conventions=("corrected", "mova"),
        check=f"{_CLIP}:check_av_align",
        chance=f"{_CLIP}:av_align_of_pair",
    ),
    Score(
        "bounce-sync",
        "mova_engine.scores.clip_bounces:bounce_sync",
        (
            ScoreColumn("bounce_f1", "", "F1 of clicks and a ball's bounces within 84 ms", 0, 1, "up"),
            ScoreColumn("bounce_offset", "s", "picture behind sound; negative: sound late"),
            ScoreColumn("bounce_f1_moved", "", "the same F1 once the sound is moved by the offset", 0, 1, "up"),
        ),
        on_request=True,
    ),
)
