"""MOVA's parts as modules: rotary tables, towers, bridge, the one forward."""
