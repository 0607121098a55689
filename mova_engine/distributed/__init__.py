"""Several processes: the mesh, context parallelism as wrappers of operators, what it sends."""
