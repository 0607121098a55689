"""Media in and out: containers, pictures, sound, colour, mp4 writing, contact sheets."""
