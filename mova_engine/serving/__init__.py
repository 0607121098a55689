"""Serving: the jobs of `/v1/videos`, their store, the workers that make them, the API and the page."""
