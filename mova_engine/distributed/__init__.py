"""Several processes: the mesh, collectives, context parallelism, FSDP2, distributed checkpoints, the watchdog."""
