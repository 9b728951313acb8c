"""From a checkpoint, a template video and a sound to a video in which the template says it."""
