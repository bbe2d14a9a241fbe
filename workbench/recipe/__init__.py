"""The recipe language: schema, loading with positions, resolution with origins."""
