"""What a clip is measured by."""
