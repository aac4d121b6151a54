"""From bytes on a connection to work for the engine and back."""
