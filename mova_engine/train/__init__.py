"""Training: recipes, the step, the trainer, checkpoints and metrics. `python -m mova_engine.train --recipe nano`."""
