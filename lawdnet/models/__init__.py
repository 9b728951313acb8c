"""The networks: generator, discriminators, sync networks, perceptual features, and the old files' formats."""
