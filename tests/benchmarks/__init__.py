"""Speed of this project and of what a user would pick instead, interleaved in one run: `make bench`."""
