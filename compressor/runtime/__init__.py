"""All that a serving process needs: matrices as they are stored, the decoder, the artefact."""
