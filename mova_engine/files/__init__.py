"""Files and folders that appear whole or not at all, the record of what the engine wrote, safetensors IO."""
