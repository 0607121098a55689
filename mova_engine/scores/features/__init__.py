"""What networks that score sound read: spectra, mel bands, resampled samples; in torch and NumPy alone."""
