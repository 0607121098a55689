# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""A program of a user, for the type checker (`make types`), which must find nothing in what is right, and on each line
that is wrong a mistake of the named rule: a comment that names what it does not find is an error too.
"""

from mova_engine import (
    GeneratedClip,
    MemoryConfig,
    Pipeline,
    Pipelines,  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnusedImport]  # noqa: F401
    TrainConfig,
    Trainer,
    bind,
    get_backend,
    load_config,
)

config: TrainConfig = load_config("nano", steps=10)
status: int = Trainer(config).run()
pipeline = Pipeline.from_pretrained("runs/nano", device="cpu", memory=MemoryConfig(expert="host"))
clip: GeneratedClip = pipeline("a red ball", image="ball.png", seed=1)
clips: list[GeneratedClip] = pipeline(["a red ball", "a blue ball"], steps=4)
height: int = clips[0].frames.shape[1]
device: str = bind(get_backend("cpu")).device

MemoryConfig(expert="disk")  # pyright: ignore[reportArgumentType]
Trainer("nano")  # pyright: ignore[reportArgumentType]
pipeline("a red ball").saves("ball.mp4")  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
pipeline(7)  # pyright: ignore[reportArgumentType, reportCallIssue]
config.optim.learning_rate  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
