"""Ray graphs over the library: thin, so that what they spread can be tested without them."""
