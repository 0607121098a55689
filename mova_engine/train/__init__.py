"""Training: recipes, the step, the trainer, checkpoints and metrics. `mova train --recipe nano`."""
