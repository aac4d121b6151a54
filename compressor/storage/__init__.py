"""Files that are whole or absent, whatever happens while they are written or read."""
