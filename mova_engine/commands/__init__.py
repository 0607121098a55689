"""The commands that belong to a single module of a room. A room of several has its command in its `__main__`."""
