"""Flow matching for two modalities: schedule, noise and loss, guidance, first-frame condition, output conversion."""
