"""The networks that scores run, each an nn.Module under the parameter names of its official checkpoint."""
