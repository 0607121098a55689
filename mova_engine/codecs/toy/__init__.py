"""Embedded codecs and text encoder, fitted to the clips: what the laptop's default uses."""
