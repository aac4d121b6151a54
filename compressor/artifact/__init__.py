"""What both halves share: names, shapes and dtypes of everything in an artefact; reading and writing it. No torch."""
