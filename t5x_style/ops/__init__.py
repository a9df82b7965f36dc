"""Pure functions without parameters: attention, rotary embedding, norms, losses."""
