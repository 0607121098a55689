"""Bytes of parts that wait in the host's memory while the device does not use them (`memory.residency`)."""

from mova_engine.config.stages import EXPERTS, PART_NAMES, TEXT_ENCODER
from mova_engine.predict.codec_cost import codec_bytes
from mova_engine.predict.job import PlannedRun, sharded
from mova_engine.predict.step_traffic import SECOND_EXPERT, component_bytes


def encoding(run: PlannedRun) -> dict[str, float]:
    """By part, while clips and words of a training run are encoded: text encoder and codecs are read to the host."""
    return {PART_NAMES[name]: size for name, size in codec_bytes(run).items()}


def waiting(run: PlannedRun) -> dict[str, float]:
    """By part, in a training step or while denoising; a copy that stays while the part is on the device counts too.

    Of sampling it is what waits once clips have been made and others are asked for.
    """
    codecs = encoding(run)
    if run.job.training:
        # The text encoder is dropped when words are encoded.
        return codecs if run.job.online else {n: size for n, size in codecs.items() if n != PART_NAMES[TEXT_ENCODER]}
    found = codecs if run.policy.idle == "host" else {}
    if run.streams_layers:
        # Its blocks come from its files.
        found.pop(PART_NAMES[TEXT_ENCODER], None)
    sizes = {name: size for name, size in component_bytes(run).items() if name in _waiting_towers(run)}
    if sizes:
        second = sizes.pop(EXPERTS[1], 0.0)
        found |= {"weights": sum(sizes.values()), SECOND_EXPERT: second}
    return found


def _waiting_towers(run: PlannedRun) -> tuple[str, ...]:
    """Components that have a copy in the host's memory, apart from weights that come layer by layer or in shards."""
    if run.streams_layers or sharded(run.layout) > 1 or run.policy.idle == "files":
        return ()
    if run.policy.idle == "device":
        # Experts that take turns wait all the same; what stays is read to the device at once.
        return EXPERTS if run.policy.expert == "host" and run.job.model.experts == 2 else ()
    return tuple(run.owned)
