"""Fast paths of the model. Each module names the reference whose results it must equal."""
