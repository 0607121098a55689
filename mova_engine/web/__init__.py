"""What the engine's servers share: headers, parts of files, the socket that they listen on."""
