"""A stand-in for a closed model: an OpenAI-compatible server for offline trials and rehearsals. All that it answers is SIMULATED."""
