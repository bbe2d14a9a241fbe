"""One file a stage: each wires the rooms below to the recipe and the artifact store."""
