"""What networks of scores read: spectra, bands and cepstra of sound, resampled samples, resized pictures; in torch,
NumPy and SciPy alone.
"""
