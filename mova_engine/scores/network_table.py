"""Scores whose networks need weights that the user names: `mova eval --weights DIR`."""

from mova_engine.scores.score_declaration import Score, ScoreColumn, SetNumber

_HERE = "mova_engine.scores.network_scores"
_SETS = "mova_engine.scores.set_scores"
_PUBLISHED = ("corrected", "mova")
_BOTH_PUBLISHED = ("corrected", "mova", "av-benchmark")


def _probability(name: str, about: str) -> ScoreColumn:
    return ScoreColumn(name, "", about, 0, 1)


def _distances(network: str, of: str) -> tuple[SetNumber, ...]:
    """The numbers of features that are compared with those of a reference."""
    return (
        SetNumber(f"fd_{network}", "", f"Frechet distance of {of}", f"{_SETS}:set_frechet_distance", "down", "set"),
        SetNumber(f"kid_{network}", "", f"kernel distance of {of}", f"{_SETS}:set_kernel_distance", "down", "set"),
    )


def _divergence(network: str, of: str) -> SetNumber:
    """Of clips that have a reference of their own; an interval is drawn over them."""
    about = f"KL of the reference's classes to the clip's, {of}"
    return SetNumber(f"kl_{network}", "nats", about, f"{_SETS}:set_kl_divergence", "down", "pairs", 200)


def _split_score(network: str, of: str) -> SetNumber:
    about = f"inception score of 10 splits, {of} (av-benchmark's)"
    return SetNumber(f"is_{network}", "", about, f"{_SETS}:set_split_inception_score", "up")


NETWORK_SCORES: tuple[Score, ...] = (
    Score(
        "desync",
        f"{_HERE}.clip_desync:clip_desync",
        (
            ScoreColumn("desync", "s", "by how much picture and sound disagree, Synchformer", 0, 2, "down"),
            ScoreColumn("desync_offset", "s", "the same with its sign; positive: the sound is early", -2, 2),
        ),
        conventions=_BOTH_PUBLISHED,
        chance=f"{_HERE}.clip_desync:desync_of_pair",
        chance_network=True,
        weights=("synchformer",),
    ),
    Score(
        "imagebind",
        f"{_HERE}.clip_imagebind:clip_imagebind",
        (ScoreColumn("imagebind", "", "cosine of picture's and sound's embedding", -1, 1, "up"),),
        conventions=_BOTH_PUBLISHED,
        chance=f"{_HERE}.clip_imagebind:imagebind_of_pair",
        weights=("imagebind",),
    ),
    Score(
        "lip-sync",
        f"{_HERE}.clip_lip_sync:clip_lip_sync",
        (
            ScoreColumn("lse_d", "", "distance of lips and voice at the best shift, SyncNet", 0, None, "down"),
            ScoreColumn("lse_c", "", "by how much the best shift is better than most", 0, None, "up"),
            ScoreColumn("lse_offset", "1/25 s", "the best shift; positive: the sound is early", -15, 15),
            ScoreColumn("face_coverage", "", "share of pictures with a face, S3FD", 0, 1),
            ScoreColumn("face_tracks", "", "faces that stay long and large enough to be judged", 0, None),
            ScoreColumn("face_seconds", "s", "seconds of all those faces", 0, None),
        ),
        version=2,
        conventions=_PUBLISHED,
        check="mova_engine.scores.picture_scores:check_opencv",
        chance=f"{_HERE}.clip_lip_sync:lip_sync_of_pair",
        weights=("s3fd", "syncnet"),
    ),
    Score(
        "clap",
        f"{_HERE}.clip_clap:clip_clap",
        (ScoreColumn("clap", "", "cosine of the sound's and its caption's embedding", -1, 1, "up"),),
        conventions=_PUBLISHED,
        chance=f"{_HERE}.clip_clap:clap_of_pair",
        weights=("clap", "roberta-base"),
        prompt=True,
        version=2,
    ),
    Score(
        "dover",
        f"{_HERE}.clip_dover:clip_dover",
        (
            ScoreColumn("dover_overall", "", "quality of the pictures", 0, 1, "up"),
            ScoreColumn("dover_technical", "", "noise, blur, compression", 0, 1, "up"),
            ScoreColumn("dover_aesthetic", "", "composition, content", 0, 1, "up"),
            ScoreColumn("dover_technical_raw", "", "the technical network's output", None, None, "up"),
            ScoreColumn("dover_aesthetic_raw", "", "the aesthetic network's output", None, None, "up"),
        ),
        conventions=_PUBLISHED,
        weights=("dover",),
    ),
    Score(
        "audiobox",
        f"{_HERE}.clip_sound_ratings:clip_audiobox",
        (
            # Outputs are not bounded; ratings of 1 to 10 are what the network was taught.
            ScoreColumn("audiobox_ce", "1 to 10", "content enjoyment", None, None, "up"),
            ScoreColumn("audiobox_cu", "1 to 10", "content usefulness", None, None, "up"),
            ScoreColumn("audiobox_pc", "1 to 10", "production complexity", None, None),
            ScoreColumn("audiobox_pq", "1 to 10", "production quality", None, None, "up"),
        ),
        weights=("audiobox",),
    ),
    Score(
        "sound-events",
        f"{_HERE}.clip_sound_ratings:clip_sound_events",
        (
            _probability("event_speech", "speech is heard, EAT"),
            _probability("event_singing", "singing is heard"),
            _probability("event_music", "music is heard"),
            _probability("event_silence", "the sound is tagged as silence"),
        ),
        weights=("eat",),
    ),
    Score(
        "panns-16k",
        f"{_HERE}.clip_tags:clip_tags_16k",
        (),
        conventions=_BOTH_PUBLISHED,
        weights=("cnn14-16k",),
        set_numbers=(
            *_distances("panns", "Cnn14's features at 16 kHz"),
            _divergence("panns", "Cnn14 at 16 kHz"),
            _split_score("panns_16k", "Cnn14 at 16 kHz"),
        ),
    ),
    Score(
        "panns-32k",
        f"{_HERE}.clip_tags:clip_tags_32k",
        (),
        conventions=_PUBLISHED,
        weights=("cnn14-32k",),
        set_numbers=(
            SetNumber("is_panns", "", "inception score, Cnn14 at 32 kHz", f"{_SETS}:set_inception_score", "up"),
        ),
        version=2,
    ),
    Score(
        "passt",
        f"{_HERE}.clip_tags:clip_passt",
        (),
        conventions=_BOTH_PUBLISHED,
        weights=("passt",),
        set_numbers=(
            *_distances("passt", "PaSST's features"),
            _divergence("passt", "PaSST"),
            _split_score("passt", "PaSST"),
        ),
    ),
    Score(
        "vggish",
        f"{_HERE}.clip_tags:clip_vggish",
        (),
        conventions=_BOTH_PUBLISHED,
        weights=("vggish",),
        set_numbers=_distances("vgg", "VGGish's features of each 0.96 s"),
    ),
)
