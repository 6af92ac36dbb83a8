"""Fast paths of the model; each module names the reference whose results it must equal."""
