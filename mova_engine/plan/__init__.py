"""The command `mova plan`: prints the predictions of `predict`, a recommendation, and the command that runs it."""
